"""The config snippets, shipped as a package so that `hubguard config install` finds them in every kind of install."""
