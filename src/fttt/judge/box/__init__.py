"""What runs inside the sandbox: standard library only, so that it can start without this package.

The folder is bound read-only into the sandbox as a top-level package called ``box`` and run by a
bare interpreter; nothing here may import another part of ``fttt``.
"""
