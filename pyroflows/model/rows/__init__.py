"""A model as terms of its globals and of each row of a plate."""

from .row_joint import Pass, RowJoint, Terms
from .structure import RowSite, Structure
from .whole import check_followed, whole_space

__all__ = ["Pass", "RowJoint", "RowSite", "Structure", "Terms", "check_followed", "whole_space"]
