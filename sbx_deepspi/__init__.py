"""Deep SPI for SB3, SBX and RL Zoo."""
