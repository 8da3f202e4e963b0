"""Files wherever they lie: on local disks, behind URLs that fsspec knows, inside tar files."""
