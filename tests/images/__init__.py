"""The images, built for real by buildah over a base that debootstrap makes, and run."""
