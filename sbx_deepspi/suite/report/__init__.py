"""The report on a suite's runs: what they show together, and how sure that is."""
