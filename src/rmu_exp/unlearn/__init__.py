"""The unlearning loop and its methods. How a step runs::

    texts of both corpora, packed in rows ──► embedding, layers 0 … first−1: the trunk, once, no autograd
                                                           │
                       ┌───────────────────────────────────┴───────────────────┐
       layers first … ℓ with the trained tensors              the same layers with their own tensors
       step.updated().h[ℓ]                                     step.frozen(RETAIN).h[ℓ], no autograd
       h[FORGET], h[RETAIN]: (tokens, hidden)                  g[RETAIN]; g[FORGET] where a loss needs it
                       └──────► method.loss(step): RMU's is mean (h[FORGET] − c·u)² + α · mean (h[RETAIN] − g[RETAIN])²
                                                           │
                             backward ──► fp32 masters of the trained tensors ──► optimizer

``first`` is the lowest trained layer: the trunk ends below it. Everything is frozen but the trained tensors, which
:func:`~rmu_exp.model.parameters.assemble` puts in the place of the model's own for the length of a call; the model in
memory is never changed. Rows without retain texts are not run through the frozen model, except on every tenth batch of
a topic, whose metrics have ``norm_forget_frozen`` and ``cos_forget``. Methods with ``logits`` run on to the head.
"""
