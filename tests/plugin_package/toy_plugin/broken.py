"""What an update has broken."""

import a_package_that_is_not_installed  # noqa: F401
