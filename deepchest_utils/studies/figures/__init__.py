"""Drawing functions that one notebook calls: a module a lesson, none of it imported by the package."""
