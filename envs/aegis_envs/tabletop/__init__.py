"""A MuJoCo arm over a table with coloured shapes, and instructions that must be understood to be followed."""
