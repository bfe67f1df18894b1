"""
rejax's PPO, for the other benchmarks to run beside ours. It wants another gymnax, so it has a virtual environment of
its own: ``make bench/rejax``. Prints one line of JSON: seconds to compile and to run, and returns by timesteps.

    bench/rejax/bin/python benchmarks/rejax_ppo.py '{"env": "CartPole-v1", "n_envs": 64, "n_steps": 128, ...}'
"""

import json
import sys
import time

import jax
import numpy as np
from rejax import PPO


def main() -> None:
    s = json.loads(sys.argv[1])
    algorithm = PPO.create(
        env=s["env"], num_envs=s["n_envs"], num_steps=s["n_steps"], num_epochs=s["n_epochs"],
        num_minibatches=s["n_envs"] * s["n_steps"] // s["batch_size"], learning_rate=s["learning_rate"], ent_coef=0.01,
        clip_eps=0.2, max_grad_norm=0.5, total_timesteps=s["steps"], eval_freq=s["steps"] // s["n_points"],
        skip_initial_evaluation=True, agent_kwargs=dict(activation=s["activation"], hidden_layer_sizes=(64, 64)),
    )  # fmt: skip
    if not s["evaluates"]:  # its evaluation takes as long as thousands of steps
        algorithm = algorithm.replace(eval_callback=lambda algorithm, state, key: (np.zeros(1), np.zeros(1)))
    start = time.perf_counter()
    train = jax.jit(algorithm.train).lower(jax.random.PRNGKey(s["seed"])).compile()
    compiled = time.perf_counter()
    state, (_, returns) = train(jax.random.PRNGKey(s["seed"]))
    jax.block_until_ready((state, returns))
    seconds = time.perf_counter() - compiled
    returns = np.asarray(returns).mean(axis=1)
    steps = int(state.global_step)
    timesteps = np.arange(1, len(returns) + 1) * steps // len(returns)
    print(json.dumps({
        "compile_s": compiled - start, "run_s": seconds, "steps": steps,
        "timesteps": timesteps.tolist(), "returns": returns.astype(float).tolist(),
    }))  # fmt: skip


if __name__ == "__main__":
    main()
