"""Nothing of its own: installing it installs every plugin that the ftcore project publishes."""
