"""The wrapper: convert a network, fit the statistics, predict."""

from __future__ import annotations

import itertools
import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager, nullcontext
from contextvars import ContextVar
from numbers import Integral
from typing import Any, Literal

import torch
from torch import Tensor, distributed, nn

from mcbn.checks import (
    check_callable,
    check_count,
    check_module,
    check_number,
    check_type,
)
from mcbn.data.batches import draw_batches, with_progress
from mcbn.method.conduct import Conduct
from mcbn.method.distances import warn_if_unfit
from mcbn.method.estimators import Plan, is_traceable, predict, predict_traced
from mcbn.method.inputs import cloned, copied_network, network_inputs
from mcbn.method.pooling import nbytes
from mcbn.method.statistics import (
    MiniBatch,
    Pair,
    batch_norms,
    called_otherwise,
    keep_statistics,
)
from mcbn.method.tree import tensors_of

Drawn = tuple[list[int], dict[Any, Pair], Plan]

_DETERMINISTIC: ContextVar[bool] = ContextVar("mcbn_deterministic", default=False)


class MCBatchNorm(nn.Module):
    r"""Monte Carlo Batch Normalization of a trained network.

    In evaluation mode ``mc(x)`` returns :math:`S` samples of the prediction: every tensor of the
    network's output gains a leading axis, ``(num_estimators, batch, …)``. Sample :math:`s`
    normalizes with the mean and the variance of :math:`M` random training examples, as each step
    of the training did (Teye, Azizpour and Smith, ICML 2018, Algorithm 1):

    .. math::

        \hat y_s = f(x;\, \theta, \mu_s, \sigma^2_s), \qquad
        p(y \mid x) \approx \frac{1}{S} \sum_{s=1}^{S} p(y \mid \hat y_s).

    In training mode it is the plain network. The statistics are those of the weights that
    :meth:`fit` saw: after more training, fit again.

    Args:
        model: A network with at least one batch norm layer (``BatchNorm1d``, ``2d``, ``3d``,
            ``SyncBatchNorm``, a lazy one or a subclass). It is copied, and left as it is. Of one
            that ``torch.compile`` has made, the network in it is taken.
        num_estimators: :math:`S`, the number of samples.
        convert: Copy the model. ``False`` uses ``model`` itself, whose batch norm layers get the
            buffers ``mc_mean`` and ``mc_var``.
        mc_batch_size: :math:`M`, the number of training examples in each mini-batch. The paper
            takes the batch size of the training; a smaller one spreads the samples wider.
        correction: ``0`` for the variance that batch norm trains with (divided by :math:`n`), ``1``
            for the unbiased one, that other implementations use.
        momentum: Weight of the mini-batch against the trained running statistics. ``1.0`` replaces
            them, as the authors' code does; ``0.1`` blends as a training step would, and shrinks
            the spread of the means to a tenth.
        path: How estimators are run: with ``"auto"`` several at once, as far as
            ``torch.vmap`` can; with ``"loop"`` one plain forward pass after another.
        chunk_bytes: At most so many bytes for the largest activation of the estimators that run at
            once. By default 8 MiB on a CPU and 1 GiB elsewhere.

    Raises:
        TypeError: ``model`` is no module or a scripted one, or a number is of the wrong type.
        ValueError: ``model`` has no batch norm layer, or a number is out of range.

    Example:
        >>> import torch
        >>> from torch.utils.data import DataLoader, TensorDataset
        >>> _ = torch.manual_seed(0)
        >>> model = nn.Sequential(nn.Linear(2, 8), nn.BatchNorm1d(8), nn.ReLU(), nn.Linear(8, 3))
        >>> train_set = TensorDataset(torch.randn(100, 2), torch.zeros(100))
        >>> mc = MCBatchNorm(model, num_estimators=16, mc_batch_size=32)
        >>> mc.fit(DataLoader(train_set)).eval()(torch.randn(5, 2)).shape
        torch.Size([16, 5, 3])
    """

    def __init__(
        self,
        model: nn.Module,
        num_estimators: int = 16,
        convert: bool = True,
        mc_batch_size: int = 32,
        *,
        correction: int = 0,
        momentum: float = 1.0,
        path: Literal["auto", "loop"] = "auto",
        chunk_bytes: int | None = None,
    ) -> None:
        super().__init__()
        check_module("model", model)
        for name, module in model.named_modules():
            if isinstance(module, torch.jit.ScriptModule):
                raise TypeError(
                    f"{name or 'the model'} is a ScriptModule, whose layers cannot be reached; "
                    "wrap the module before scripting."
                )
            if isinstance(module, MCBatchNorm):
                raise ValueError(
                    f"the {type(model).__name__} holds an MCBatchNorm already; pass the network in "
                    "it, its .model."
                )
        tensors = (*model.parameters(), *model.buffers())
        if any(nn.parameter.is_lazy(tensor) for tensor in tensors):
            raise ValueError(
                f"{type(model).__name__} has lazy layers that have seen no batch yet; call "
                "model(example_batch) first."
            )
        check_count("num_estimators", num_estimators)
        check_type("convert", convert, bool, "True or False; the batch size is mc_batch_size=")
        check_count("mc_batch_size", mc_batch_size)
        if chunk_bytes is not None:
            check_count("chunk_bytes", chunk_bytes)
        check_number("correction", correction, "0 (biased) or 1 (unbiased)", lambda c: c in (0, 1))
        check_number("momentum", momentum, "a number above 0, at most 1", lambda m: 0 < m <= 1)
        if path not in ("auto", "loop"):
            raise ValueError(f"path={path!r}; it is 'auto' or 'loop'.")
        self.num_estimators = num_estimators
        self.mc_batch_size = mc_batch_size
        self.correction = correction
        self.momentum = momentum
        self.path: Literal["auto", "loop"] = path
        self.chunk_bytes = chunk_bytes
        self.model = _uncompiled(copied_network(model) if convert else model)
        layers = batch_norms(self.model)
        if not layers:
            raise ValueError(
                f"{type(model).__name__} has no batch norm layer, so there is nothing to draw; if "
                "it was traced or exported, wrap the module before that."
            )
        for name, layer in layers.items():
            if momentum < 1 and layer.running_mean is None:
                raise ValueError(
                    f"momentum={momentum} blends into the running statistics, but layer {name!r} "
                    "keeps none; use momentum=1.0."
                )
            keep_statistics(layer)
            self._check_number(name, layer)
        self.register_load_state_dict_pre_hook(_before_loading)
        self._plan = self._new_plan()
        self.train(model.training)

    @property
    def fitted(self) -> bool:
        """Whether every batch norm layer holds statistics."""
        return all(layer.mc_mean is not None for layer in batch_norms(self.model).values())

    @property
    def loop_reason(self) -> str | None:
        """Why the last prediction ran one estimator after another; None if it did not."""
        return self._plan.loop_reason

    def fit(
        self,
        data: Iterable[Any],
        *,
        generator: torch.Generator | None = None,
        input_fn: Callable[[Any], Any] | None = None,
    ) -> MCBatchNorm:
        """Draw the statistics of every estimator, and return the wrapper.

        Dropout and everything but batch norm run in evaluation mode; afterwards every module is in
        the mode in which it was. If anything fails, the former statistics stay in force. In a
        distributed run every process must call it, and all get the statistics of the first; where
        it fails in one, it fails in all. Statistics very far from the trained ones raise a warning;
        :func:`mcbn.diagnostics.fit_report` looks closer.

        Args:
            data: A DataLoader over the training set: each estimator gets ``mc_batch_size`` examples
                of its dataset, drawn independently and without replacement, through the loader's
                transforms and ``collate_fn``. Or any iterable of batches: each estimator gets one,
                in order.
            generator: Source of the draws (on the CPU). With one, PyTorch's global random state
                is left as it is; without one, it seeds the draws.
            input_fn: Picks the network's inputs from a batch: a tensor, a tuple of positional or
                a dict of keyword arguments. By default the first part of the batch.

        Raises:
            RuntimeError: A layer gives its running statistics to something else than
                ``F.batch_norm``; or, in a distributed run, another process failed.
            TypeError: ``data`` is not iterable, a batch holds no tensor, or an argument is of the
                wrong type.
            ValueError: There are too few examples or batches, a layer sees one value a channel or
                another number of channels than its own, a statistic is not finite, or the network
                is on the meta device.
        """
        _, drawn, plan = self._draw_together(data, None, generator, input_fn)
        warn_if_unfit(self.model, drawn)  # before anything is replaced: a warning may be an error
        for layer, (mean, var) in drawn.items():
            layer.mc_mean, layer.mc_var = mean, var
        self._plan = plan
        return self

    def resample(
        self,
        data: Iterable[Any],
        estimators: Iterable[int],
        *,
        generator: torch.Generator | None = None,
        input_fn: Callable[[Any], Any] | None = None,
    ) -> MCBatchNorm:
        """Draw the statistics of some estimators again, and keep those of the others.

        The paper draws afresh for every prediction; redrawing one estimator after each prediction
        comes near to that at a fraction of the cost of a :meth:`fit`.

        Args:
            data: As in :meth:`fit`.
            estimators: Their indices.
            generator: As in :meth:`fit`.
            input_fn: As in :meth:`fit`.

        Raises:
            IndexError: An index is out of range.
            RuntimeError: There are no statistics yet, or the network calls a layer more or less
                often than it did in :meth:`fit`.
            TypeError: ``estimators`` are no integers; or as in :meth:`fit`.
            ValueError: There is no index, or one comes twice; or as in :meth:`fit`.
        """
        if not self.fitted:
            raise _not_fitted()
        chosen, drawn, _ = self._draw_together(data, estimators, generator, input_fn)
        for layer, new in drawn.items():
            old = layer.mc_mean, layer.mc_var
            if new[0].shape[1] != old[0].shape[1]:
                raise called_otherwise(layer, new[0].shape[1], old[0].shape[1])
            index = torch.tensor(chosen, device=old[0].device)
            mean, var = (o.index_copy(0, index, n.to(o)) for o, n in zip(old, new, strict=True))
            drawn[layer] = mean, var
        for layer, (mean, var) in drawn.items():
            layer.mc_mean, layer.mc_var = mean, var
        return self

    def load_state_dict(
        self, state_dict: Mapping[str, Any], strict: bool = True, assign: bool = False
    ) -> Any:
        """As PyTorch's, but all or nothing: a state that cannot be loaded changes nothing.

        A ``state_dict()`` holds tensors only. Read it from a file with ``torch.load(path,
        weights_only=True)``, PyTorch's default, which runs no code that a file may hold.

        Args:
            state_dict: What ``state_dict()`` of a wrapper returned, fitted or not. One without
                statistics takes those of the wrapper away, as they were of other weights.
            strict: Whether missing and unexpected names are errors.
            assign: Take the tensors themselves, not their values.

        Raises:
            RuntimeError: It is of another architecture or ``num_estimators``, or its statistics are
                not whole.
            TypeError: It is no mapping.
        """
        owners: list[Any] = [own for m in self.modules() for own in (m._parameters, m._buffers)]
        held = [(own, name, tensor) for own in owners for name, tensor in own.items()]
        values = [None if tensor is None else tensor.detach().clone() for *_, tensor in held]
        try:
            return super().load_state_dict(state_dict, strict, assign)
        except BaseException:
            for (own, name, tensor), value in zip(held, values, strict=True):
                own[name] = tensor
                if value is not None:
                    tensor.detach().copy_(value)
            raise

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        """The plain network in training mode, ``num_estimators`` samples in evaluation mode.

        Raises:
            RuntimeError: In evaluation mode, before :meth:`fit`.
        """
        if self.training or _DETERMINISTIC.get():
            return self.model(*args, **kwargs)
        layers = batch_norms(self.model)
        for name, layer in layers.items():
            if layer.mc_mean is None:
                raise _not_fitted()
            self._check_number(name, layer)
        if torch.compiler.is_compiling() and is_traceable(layers):
            return predict_traced(self, layers, args, kwargs)
        return predict(self, layers, args, kwargs)

    @contextmanager
    def deterministic(self) -> Iterator[None]:
        """Within this context the wrapper is the plain network, without an estimator axis."""
        token = _DETERMINISTIC.set(True)
        try:
            yield
        finally:
            _DETERMINISTIC.reset(token)

    def extra_repr(self) -> str:
        """The numbers, and how the last prediction was run."""
        parts = [f"num_estimators={self.num_estimators}", f"mc_batch_size={self.mc_batch_size}"]
        if not self.fitted:
            parts.append("not fitted")
        elif self._plan.loop_reason is not None:
            parts.append(f"path=loop ({self._plan.loop_reason})")
        elif self._plan.snapshot is not None:
            parts.append("path=vmap")
        return ", ".join(parts)

    def _new_plan(self) -> Plan:
        return Plan("it was asked for", loops=True) if self.path == "loop" else Plan()

    def _check_number(self, name: str, layer: Any) -> None:
        """Raise an error for statistics of another number of estimators, or that were rounded."""
        mean = layer.mc_mean
        if mean is not None and mean.element_size() < 4:
            raise RuntimeError(
                f"the statistics of layer {name!r} are {mean.dtype}, wanted single precision at "
                "least, as a variance may not be finite in 16 bits; convert the wrapper, not its "
                ".model, and fit again."
            )
        if mean is not None and len(mean) != self.num_estimators:
            raise ValueError(
                f"num_estimators={self.num_estimators}, but layer {name!r} holds statistics of "
                f"{len(mean)}; use the same number, or fit again."
            )

    def _draw_together(self, *args: Any) -> Drawn:
        """As :meth:`_draw`; in a distributed run, the first process's statistics in all of them.

        If it fails in one it fails in all: else the others would wait for that one in their next
        collective operation, forever.
        """
        if not (distributed.is_available() and distributed.is_initialized()):
            return self._draw(*args)
        like = _example(self.model)
        failed = torch.zeros((), device=None if like is None else like.device)
        try:
            chosen, drawn, plan = self._draw(*args)
        except Exception:
            distributed.all_reduce(failed + 1)
            raise
        distributed.all_reduce(failed)
        if failed:
            raise RuntimeError(
                f"fit failed in {int(failed)} of {distributed.get_world_size()} processes, though "
                "not in this one; look for the error of the other, and call fit in all of them."
            )
        for statistics in drawn.values():
            for statistic in statistics:
                distributed.broadcast(statistic, src=0)
        return chosen, drawn, plan

    @torch.inference_mode(False)
    @torch.no_grad()
    def _draw(
        self,
        data: Iterable[Any],
        estimators: Iterable[int] | None,
        generator: torch.Generator | None,
        input_fn: Callable[[Any], Any] | None,
    ) -> Drawn:
        """Run a mini-batch for each of these estimators, or of all.

        Returns:
            The estimators, each layer's statistics, and how the network may be run.
        """
        chosen = _indices(estimators, self.num_estimators)
        count = len(chosen)
        draws: list[dict[Any, list[Pair]]] = []
        plan = self._new_plan()
        like = _example(self.model)
        if like is not None and like.is_meta:
            raise ValueError(
                "the network is on the meta device, without weights; call to_empty(device=...) and "
                "load_state_dict(...) first."
            )
        if input_fn is not None:
            check_callable("input_fn", input_fn, "a function from a batch to the network's inputs")
        layers = batch_norms(self.model)
        with _evaluation_mode(self.model), _seeded(generator) as drawing:
            batches = draw_batches(data, count, self.mc_batch_size, drawing)
            for index, batch in enumerate(with_progress("Fitting MCBN", batches, count), start=1):
                inputs = network_inputs(batch, input_fn, like)
                run = MiniBatch(layers, self.correction)
                try:
                    # What is made once, such as a mask that is kept, an earlier pass has made.
                    conduct = Conduct(self.model, inputs) if index == count else None
                    args, kwargs = conduct.given if conduct else cloned(inputs)
                    with run, conduct or nullcontext():
                        self.model(*args, **kwargs)
                    if conduct and not plan.loops:
                        plan.loop_reason = conduct.fault()
                        plan.loops = plan.loop_reason is not None
                except Exception as error:
                    given = [f"{t.dtype} of shape {tuple(t.shape)}" for t in tensors_of(inputs)]
                    error.add_note(
                        f"fit called the network with {', '.join(given)}; if these are not its "
                        "inputs, pass input_fn=, a function from a batch to the network's inputs."
                    )
                    raise
                draws.append(run.drawn)
                plan.learn(run, sum(map(nbytes, tensors_of(inputs))))
        drawn = {
            layer: self._stacked(name, layer, [draw[layer] for draw in draws])
            for name, layer in layers.items()
        }
        return chosen, drawn, plan

    def _stacked(self, name: str, layer: Any, draws: list[list[Pair]]) -> Pair:
        """The means and variances of a layer's draws, ``(num_draws, num_calls, num_features)``."""
        num_calls = max(map(len, draws))
        if num_calls == 0:
            like = torch.empty(0) if layer.weight is None else layer.weight
            nothing = like.new_empty(len(draws), 0, layer.num_features)
            return nothing, nothing.clone()
        missed = sum(len(draw) < num_calls for draw in draws)
        if missed:
            if layer.running_mean is None:
                raise ValueError(
                    f"{missed} of {len(draws)} mini-batches did not reach layer {name!r}, which "
                    "has no running statistics to take their place; use a larger mc_batch_size."
                )
            warnings.warn(
                f"{missed} of {len(draws)} mini-batches did not reach layer {name!r}; their "
                "estimators use its trained running statistics there.",
                stacklevel=4,
            )
            trained = (layer.running_mean, layer.running_var)
            draws = [[*draw, *[trained] * (num_calls - len(draw))] for draw in draws]
        calls = [call for draw in draws for call in draw]
        mean, var = (
            torch.stack([call[part] for call in calls]).view(len(draws), num_calls, -1)
            for part in (0, 1)
        )
        if not (mean.isfinite().all() and var.isfinite().all()):
            raise ValueError(
                f"the mean or the variance that layer {name!r} saw is not finite; look for NaN and "
                "infinite values in the training data and in the network's weights."
            )
        if self.momentum < 1:
            mean = torch.lerp(layer.running_mean.to(mean.dtype), mean, self.momentum)
            var = torch.lerp(layer.running_var.to(var.dtype), var, self.momentum)
        return mean, var

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> MCBatchNorm:
        """Move and convert, but keep statistics in single precision at least."""
        layers: list[Any] = list(batch_norms(self.model).values())
        held = [(each, each.mc_mean, each.mc_var) for each in layers if each.mc_mean is not None]
        super()._apply(fn, recurse)
        for layer, mean, var in held:
            if layer.mc_mean.element_size() < 4:
                device = layer.mc_mean.device
                layer.mc_mean, layer.mc_var = mean.to(device), var.to(device)
        return self


def _before_loading(mc: MCBatchNorm, state_dict: dict[str, Any], prefix: str, *rest: Any) -> None:
    """See what no layer can know: whether others have statistics, and of how many estimators."""
    _, _, missing_keys, _, error_msgs = rest
    needed = [f"{prefix}{name}.mc_mean" for name in batch_norms(mc)]
    absent = [key for key in needed if key not in state_dict]
    if len(absent) < len(needed):
        missing_keys += absent
    for key in needed:
        saved = state_dict.get(key)
        if isinstance(saved, Tensor) and saved.shape[:1] != (mc.num_estimators,):
            error_msgs.append(
                f"{key} has shape {tuple(saved.shape)}, but this wrapper has num_estimators="
                f"{mc.num_estimators}; build one with as many as were saved."
            )


def _not_fitted() -> RuntimeError:
    return RuntimeError("MCBatchNorm holds no statistics yet; call fit(train_dataloader) first.")


def _uncompiled(model: Any) -> Any:
    """The network without what ``torch.compile`` has put around it, or around parts of it."""
    model = getattr(model, "_orig_mod", model)
    for module in list(model.modules()):
        vars(module).pop("_compiled_call_impl", None)  # what module.compile() leaves
        for name, child in module.named_children():
            if hasattr(child, "_orig_mod"):
                setattr(module, name, child._orig_mod)
    return model


def _indices(estimators: Any, num_estimators: int) -> list[int]:
    """The estimators to draw, each an int and each once; all of them for None."""
    if estimators is None:
        return list(range(num_estimators))
    if not isinstance(estimators, Iterable) or isinstance(estimators, str):
        raise TypeError(
            f"estimators={estimators!r} is a {type(estimators).__name__}; pass several indices, "
            "as in [0, 3]."
        )
    # The elements of a tensor are tensors.
    chosen: list[Any] = [
        v.item() if isinstance(v, Tensor) and v.dim() == 0 else v for v in estimators
    ]
    for index in chosen:
        check_type("an index in estimators", index, Integral, "integers, as in [0, 3]")
        if not 0 <= index < num_estimators:
            raise IndexError(
                f"estimator {index} was asked for, but there are num_estimators="
                f"{num_estimators}: 0 to {num_estimators - 1}."
            )
    if not chosen or len(set(chosen)) < len(chosen):
        raise ValueError(f"estimators={chosen}; pass at least one index, and each once.")
    return chosen


def _example(model: nn.Module) -> Tensor | None:
    """A tensor of the network's device and precision, if it has one."""
    tensors = itertools.chain(model.parameters(), model.buffers())
    return next((tensor for tensor in tensors if tensor.is_floating_point()), None)


@contextmanager
def _evaluation_mode(model: nn.Module) -> Iterator[None]:
    """Every module in evaluation mode, and afterwards in the mode in which it was."""
    modes = {module: module.training for module in model.modules()}
    for module in modes:
        module.training = False
    try:
        yield
    finally:
        for module, mode in modes.items():
            module.training = mode


@contextmanager
def _seeded(generator: torch.Generator | None) -> Iterator[torch.Generator]:
    """A generator for the draws, with PyTorch's global one put aside and seeded from it."""
    if generator is None:
        generator = torch.Generator().manual_seed(int(torch.randint(2**62, (), device="cpu")))
    elif not isinstance(generator, torch.Generator) or generator.device.type != "cpu":
        raise TypeError(f"generator={generator!r}; pass a torch.Generator of the CPU.")
    with torch.random.fork_rng(devices=[]):
        # What the training transforms draw is part of the draw.
        seed = torch.randint(2**62, (), generator=generator, device="cpu")
        torch.default_generator.manual_seed(int(seed))
        yield generator
