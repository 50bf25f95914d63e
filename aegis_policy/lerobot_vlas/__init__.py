"""LeRobot's own vision-language-action policies, with a protection of the VLM inside.

`--policy.type=aegis_smolvla`, `aegis_pi0`, `aegis_pi05`, `aegis_pi0_fast` and `aegis_eo1` are LeRobot's types of those
names as they are, with the fields of a protection beside their own. LeRobot finds them by the names of these modules
(`configuration_vlas`, `modeling_vlas`, `processor_vlas`).
"""
