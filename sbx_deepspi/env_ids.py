"""The ids of environments, without the environments: their libraries take seconds to import, or are not installed."""

CONFOUNDING_GRID = "ConfoundingGrid"
GRID_STEPS = 200
"""The grid's time limit."""
EXTRAS = {"gymnax": "jax", "brax": "brax", "craftax": "craftax"}
"""How ids begin → the extra that installs the library."""
IDS = {
    "gymnax": (
        "CartPole-v1", "Pendulum-v1", "Acrobot-v1", "MountainCar-v0", "MountainCarContinuous-v0", "Asterix-MinAtar",
        "Breakout-MinAtar", "Freeway-MinAtar", "Seaquest-MinAtar", "SpaceInvaders-MinAtar", "Catch-bsuite",
        "DeepSea-bsuite", "MemoryChain-bsuite", "UmbrellaChain-bsuite", "DiscountingChain-bsuite", "MNISTBandit-bsuite",
        "SimpleBandit-bsuite", "FourRooms-misc", "MetaMaze-misc", "PointRobot-misc", "BernoulliBandit-misc",
        "GaussianBandit-misc", "Reacher-misc", "Swimmer-misc", "Pong-misc", "FrozenLake-misc",
    ),
    "brax": (
        "ant", "fast", "halfcheetah", "hopper", "humanoid", "humanoidstandup", "inverted_pendulum",
        "inverted_double_pendulum", "pusher", "reacher", "swimmer", "walker2d",
    ),
    "craftax": (
        "Craftax-Symbolic-v1", "Craftax-Pixels-v1", "Craftax-Classic-Symbolic-v1", "Craftax-Classic-Pixels-v1",
    ),
}  # fmt: skip
"""Of each suite."""
