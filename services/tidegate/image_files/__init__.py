"""What image files state about themselves before their pixels: format, size and orientation.

The gateway and the vision server read the same headers with this package, so both refuse a file for
the same reason. It needs the standard library only, and decodes nothing.
"""

from tidegate.image_files.headers import ImageSize, InvalidImageError, read_size

__all__ = ["ImageSize", "InvalidImageError", "read_size"]
