"""Ray Serve deployments: one thin file each, composed by ``deployments.app``."""
