"""What tests of several layers share: simulated peers and disks, and the checkers of what survives them."""
