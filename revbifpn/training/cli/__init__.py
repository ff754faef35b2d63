"""The commands ``revbifpn-train`` and ``revbifpn-test``.

MMEngine is imported when they run, so that where it is missing they can say so in one line.
"""
