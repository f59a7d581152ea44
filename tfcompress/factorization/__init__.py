"""Low rank: kernels as products of smaller ones, with ranks by energy or by budget."""

from tfcompress.factorization.factorize import FactorizationPlan, factorize, plan_factorization
from tfcompress.factorization.forms import Form

__all__ = ["FactorizationPlan", "Form", "factorize", "plan_factorization"]
