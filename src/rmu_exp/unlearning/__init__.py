"""The unlearning loop and its methods. How a step runs::

    texts of both corpora, packed in rows ──► embedding, layers 0 … first−1: the trunk, once, no autograd
                       ┌───────────────────────────────────┴───────────────────┐
       layers first … ℓ with the trained tensors              the same layers with their own tensors
       step.updated().h[ℓ]                                     step.frozen(RETAIN).h[ℓ], no autograd
                       └──────► method.loss(step): RMU's is mean (h[FORGET] − c·u)² + α · mean (h[RETAIN] − g[RETAIN])²
                             backward ──► fp32 masters of the trained tensors ──► optimizer

``first`` is the lowest trained layer. The trained tensors are put in place for the length of a call
(:func:`~rmu_exp.model.parameters.assemble`): the model in memory is never changed.
"""
