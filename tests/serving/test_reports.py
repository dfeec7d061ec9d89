from tests.placement.builders import dense, igpu, rtx4090
from tests.placement.fleets import view
from xgen_ray.placement import Backend, EngineOptions, FleetPlan, plan_fleet
from xgen_ray.serving.reports import plan_report


def test_a_plan_for_some_of_the_replicas_says_how_many_are_missing_and_why() -> None:
    decision = plan_fleet(
        dense(32), EngineOptions(gpus=(0,)), [view("gpu-1", rtx4090())], replicas=3, partial=True
    )
    assert isinstance(decision, FleetPlan)
    report = plan_report("dense-32b", decision)
    assert report.accepted
    assert (len(report.assignments), report.missing) == (1, 2)
    assert report.shortfall is not None
    assert report.shortfall.startswith("1 of 3 replicas have a place. For the next, dense-32b needs ")
    assert report.message.startswith(f"{report.shortfall} Would run by llama-server-vulkan: ")


def test_a_plan_for_all_replicas_lacks_nothing() -> None:
    decision = plan_fleet(dense(8), EngineOptions(), [view("gpu-1", rtx4090())])
    report = plan_report("dense-8b", decision)
    assert (report.missing, report.shortfall) == (0, None)
    assert report.message.startswith("would run by llama-server-vulkan: ")


def test_each_gpu_is_told_of_once_with_its_node() -> None:
    decision = plan_fleet(dense(8), EngineOptions(), [view("gpu-1", rtx4090(), igpu())], per_gpu=True)
    report = plan_report("dense-8b", decision)
    (node,) = report.nodes
    (cuda,) = [item for item in node.candidates if item.backend is Backend.LLAMA_SERVER_CUDA]
    assert [(gpu.id, gpu.name, gpu.chosen, gpu.fits) for gpu in cuda.gpus] == [
        (0, "NVIDIA GeForce RTX 4090", False, True),
        (1, "AMD Radeon Graphics", False, False),
    ]
    assert cuda.gpus[1].reason == "llama-server-cuda is not for amd_rdna GPUs"
    assert len(report.candidates) == len(node.candidates)
    assert not any(item.gpus for item in report.candidates)
