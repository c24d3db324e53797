"""How several devices train one model: replicas (DDP) or shards (FSDP2) of it.

    ddp     each rank has the whole model and averages gradients; Li et al. 2020
    fsdp    each rank has a part of every parameter, and gathers a block's when it is run; Zhao et
            al. 2023, in torch's second version (`fully_shard`)

PowerSGD (Vogels et al. 2019), which DALL-E trained with, sends two thin factors of each gradient
matrix in place of the matrix; what they leave out is added to the next batch's gradient.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

import torch
from lightning.pytorch.strategies import DDPStrategy, ModelParallelStrategy, Strategy
from omegaconf import DictConfig
from torch.distributed.algorithms.ddp_comm_hooks import powerSGD_hook
from torch.distributed.checkpoint.state_dict import (
    StateDictOptions,
    get_optimizer_state_dict,
    set_model_state_dict,
    set_optimizer_state_dict,
)
from torch.nn.parallel import DistributedDataParallel

from salon.models.base import Trainee

STRATEGIES = ("auto", "ddp", "fsdp")
POWER_SGD = ("rank", "start")


@runtime_checkable
class Remakes(Protocol):
    """A network that can run its blocks again in the backward pass."""

    def checkpoint_activations(self) -> None: ...


# Not Lightning's, so taken away before it sees the trainer's options.
OWN = ("power_sgd", "compile", "checkpoint_activations")
COMPILE = ("backend", "mode")


def check(trainer: DictConfig | Mapping[str, Any]) -> None:
    """Raises ValueError for a setting of the trainer's that makes no sense."""
    name = trainer.get("strategy", "auto")
    if name not in STRATEGIES:
        raise ValueError(f"trainer.strategy={name}; expected one of {', '.join(STRATEGIES)}")
    nodes, devices = trainer.get("num_nodes", 1), trainer.get("devices", 1)
    if not isinstance(nodes, int) or nodes < 1:
        raise ValueError(f"trainer.num_nodes={nodes}; expected a whole number, at least 1")
    if devices != "auto" and not (isinstance(devices, int) and (devices >= 1 or devices == -1)):
        raise ValueError(
            f"trainer.devices={devices}; expected a number of devices on each node, or auto"
        )
    if ranks(trainer) > 1 and name == "auto":
        raise ValueError(
            f"trainer.devices={devices}, trainer.num_nodes={nodes}: how shall several devices "
            "train? Say trainer=ddp (each has the whole model) or trainer=fsdp (each has a part)"
        )
    compression = trainer.get("power_sgd")
    if compression is not None:
        wrong = set(compression) != set(POWER_SGD) or not all(
            isinstance(value, int) and value >= least
            for value, least in ((compression["rank"], 1), (compression["start"], 2))
        )
        if wrong or name != "ddp":
            raise ValueError(
                f"trainer.power_sgd={dict(compression)}; expected {{rank: R, start: B}}, R at "
                "least 1 and B at least 2 batches, with trainer.strategy=ddp; or null"
            )
    compiled = trainer.get("compile")
    if compiled is not None and set(compiled) != set(COMPILE):
        raise ValueError(
            f"trainer.compile={compiled}; expected {{backend: inductor, mode: default}} or null"
        )
    if compiled is not None and name == "fsdp":
        raise ValueError(
            "trainer.compile and trainer.strategy=fsdp do not go together; say trainer.compile=null"
        )


def devices(trainer: DictConfig | Mapping[str, Any]) -> int:
    """Of each node."""
    asked = trainer.get("devices", 1)
    if asked not in ("auto", -1):
        return int(asked)
    return torch.cuda.device_count() if _on_gpus(trainer) else 1


def ranks(trainer: DictConfig | Mapping[str, Any]) -> int:
    """How many processes train: one for each device of each node."""
    return devices(trainer) * int(trainer.get("num_nodes", 1))


def backend(trainer: DictConfig | Mapping[str, Any]) -> str:
    """By which ranks talk: about what lies on a CPU, and on GPUs where they train there."""
    return "cpu:gloo,cuda:nccl" if _on_gpus(trainer) else "gloo"


def _on_gpus(trainer: DictConfig | Mapping[str, Any]) -> bool:
    return wants_gpus(trainer) and torch.cuda.is_available()


def wants_gpus(trainer: DictConfig | Mapping[str, Any]) -> bool:
    """If there are any; does not ask CUDA, which looks at CUDA_VISIBLE_DEVICES only once."""
    return trainer.get("accelerator", "auto") in ("auto", "gpu", "cuda")


def make_ready(model: Trainee, options: Mapping[str, Any], *, stage: bool) -> None:
    """Compile its networks, and let them remake activations, where the options say so.

    Stages are trained as the run is, as far as they can be. Raises ValueError where the run's own
    model cannot.
    """
    if options.get("checkpoint_activations"):
        able = [n for n in model.networks if isinstance(n, Remakes)]
        if not able and not stage:
            raise ValueError(
                f"trainer.checkpoint_activations=true: {type(model).__name__} has no network that "
                "can; say trainer.checkpoint_activations=false"
            )
        for one in able:
            one.checkpoint_activations()
    compiled = options.get("compile")
    if compiled is None:
        return
    if not model.networks and not stage:
        raise ValueError(
            f"trainer.compile: {type(model).__name__} has no network to compile; say "
            "trainer.compile=null"
        )
    for network in model.networks:
        network.compile(backend=compiled["backend"], mode=compiled["mode"])


def strategy(options: Mapping[str, Any], model: Trainee, *, stage: bool) -> str | Strategy:
    """Lightning's, for `ranks` processes. Where a stage cannot be sharded, each has the whole.

    Raises ValueError for a model that cannot be sharded.
    """
    name = options.get("strategy", "auto")
    if name == "auto":
        return "auto"
    if name == "fsdp" and (model.shards or not stage):
        if not model.shards:
            raise ValueError(
                f"trainer.strategy=fsdp: {type(model).__name__} cannot be trained in shards; each "
                "device has to have the whole of it: trainer=ddp"
            )
        inside = {id(p) for module in model.shards for p in module.parameters()}
        assert all(id(p) in inside for p in model.parameters() if p.requires_grad)
        return Sharded(
            data_parallel_size=ranks(options), tensor_parallel_size=1,
            save_distributed_checkpoint=False,  # one file, which any other strategy reads
        )  # fmt: skip
    # Two networks that train in turn leave each other's gradients out.
    given: dict[str, Any] = {"find_unused_parameters": model.in_turn}
    if options.get("power_sgd") and backend(options) == "gloo":
        # On a CPU ranks pair what they send by its order, and the hooks of several buckets race.
        given["bucket_cap_mb"] = 2**20
    return Replicas(options.get("power_sgd"), **given)


class Replicas(DDPStrategy):
    """DDP, which compresses gradients on any device: Lightning's own hooks are for GPUs alone."""

    def __init__(self, power_sgd: Mapping[str, int] | None, **options: Any) -> None:
        super().__init__(**options)
        self.power_sgd = power_sgd

    def configure_ddp(self) -> None:
        super().configure_ddp()
        if self.power_sgd is not None:
            assert isinstance(self.model, DistributedDataParallel)
            state = powerSGD_hook.PowerSGDState(
                process_group=None,
                matrix_approximation_rank=self.power_sgd["rank"],
                start_powerSGD_iter=self.power_sgd["start"],
            )
            self.model.register_comm_hook(state, powerSGD_hook.powerSGD_hook)


class Sharded(ModelParallelStrategy):
    """FSDP2 whose checkpoints are those of every other strategy: one file of whole tensors, the
    optimiser's parameters numbered as the optimiser has them."""

    def optimizer_state(self, optimizer: Any) -> dict[str, Any]:
        optimizer = getattr(optimizer, "_optimizer", optimizer)  # out of Lightning's wrapper
        assert self.model is not None
        options = StateDictOptions(full_state_dict=True, cpu_offload=True)
        named: dict[str, Any] = get_optimizer_state_dict(self.model, optimizer, options=options)
        if not named:  # not the first rank, which alone writes
            return {}
        numbers = {name: i for i, name in enumerate(self._names(optimizer))}
        return {
            "state": {numbers[name]: told for name, told in named["state"].items()},
            "param_groups": [
                {**group, "params": [numbers[name] for name in group["params"]]}
                for group in named["param_groups"]
            ],
        }

    def load_checkpoint(
        self, checkpoint_path: str | Path, weights_only: bool | None = None
    ) -> dict[str, Any]:
        assert self.model is not None
        assert self.lightning_module is not None
        path = self.broadcast(checkpoint_path)
        contents: dict[str, Any] = torch.load(path, map_location="cpu", weights_only=weights_only)
        whole = StateDictOptions(
            full_state_dict=True, strict=bool(self.lightning_module.strict_loading)
        )
        set_model_state_dict(self.model, contents["state_dict"], options=whole)
        for optimizer, told in zip(self.optimizers, contents["optimizer_states"], strict=True):
            names = self._names(optimizer)
            named: dict[str, Any] = {
                "state": {names[i]: state for i, state in told["state"].items()},
                "param_groups": [
                    {**group, "params": [names[i] for i in group["params"]]}
                    for group in told["param_groups"]
                ],
            }
            set_optimizer_state_dict(
                self.model, optimizer, named, options=StateDictOptions(full_state_dict=True)
            )
        return contents

    def _names(self, optimizer: torch.optim.Optimizer) -> list[str]:
        """Of the optimiser's parameters, in its order."""
        assert self.model is not None
        known = {id(parameter): name for name, parameter in self.model.named_parameters()}
        return [known[id(p)] for group in optimizer.param_groups for p in group["params"]]
