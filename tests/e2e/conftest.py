"""The project in `third_party` is installed and tested in an environment of its own, not collected with these tests."""

collect_ignore = ["third_party"]
