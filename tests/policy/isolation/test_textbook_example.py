import doctest

import aegis_policy.isolation


def test_the_example_in_the_package_docstring_runs():
    results = doctest.testmod(aegis_policy.isolation)
    assert results.attempted > 10
    assert results.failed == 0


def test_the_public_names_exist():
    for name in aegis_policy.isolation.__all__:
        assert hasattr(aegis_policy.isolation, name)
