"""LeRobot's own vision-language-action policies, with a protection of the VLM inside.

`--policy.type=aegis_smolvla`, `aegis_pi0` and `aegis_pi05` are `smolvla`, `pi0` and `pi05` as LeRobot has them, with
the fields of a protection beside their own. LeRobot finds them by the names of these modules (`configuration_vlas`,
`modeling_vlas`, `processor_vlas`).
"""
