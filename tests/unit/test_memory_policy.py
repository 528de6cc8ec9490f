"""How a server's memory is spread and paged: what is chosen, where it shows, and what is refused."""

import pytest

from moehost import memory_policy, rehearse, settings
from moehost.memory_policy import Spread
from moehost.plan import make
from tests.unit.full_size import as_set, qwen35_397b
from tests.unit.machines import with_numa_nodes

HEADERS = as_set(qwen35_397b())
PATH = "/srv/models/q/q-00001-of-00006.gguf"


def planned(nodes=1, gpus=1, dialect="ik", huge_pages="auto", **more):
    model = {"name": "q", "source": "file:///srv/q.gguf"}
    node = settings.read({"services": [{"name": "q", "model": model, **more}], "tuning": {"huge_pages": huge_pages}})
    return make(node.services[0], PATH, HEADERS, with_numa_nodes(nodes, gpus), dialect, tuning=node.tuning)


class TestNuma:
    @pytest.mark.parametrize("wish", ["auto", "off", "interleave", "distribute", "isolate", "numactl"])
    def test_one_node_needs_nothing(self, wish):
        plan = planned(nodes=1, numa=wish)
        assert not plan.placement.is_interleaved
        assert "--numa" not in plan.arguments

    @pytest.mark.parametrize(
        ("wish", "is_interleaved", "flag"),
        [
            ("auto", True, None),
            ("interleave", True, None),
            ("distribute", True, "distribute"),
            ("numactl", True, "numactl"),
            ("isolate", False, "isolate"),
            ("off", False, None),
        ],
    )
    @pytest.mark.parametrize("dialect", ["ik", "llama.cpp"])
    def test_several_nodes(self, dialect, wish, is_interleaved, flag):
        plan = planned(nodes=4, numa=wish, dialect=dialect)
        assert plan.placement.is_interleaved is is_interleaved
        given = plan.arguments[plan.arguments.index("--numa") + 1] if "--numa" in plan.arguments else None
        assert given == flag

    @pytest.mark.parametrize("wish", ["distribute", "isolate", "numactl"])
    def test_the_engine_knows_of_eight_nodes(self, wish):
        assert memory_policy.spread(wish, 8).flag == wish
        with pytest.raises(
            ValueError, match=r"^numa: '\w+' with 16 NUMA nodes, of which the engine sees 8 .* 'auto'"
        ):
            planned(nodes=16, numa=wish)

    def test_each_cache_a_node_is_still_interleaved(self):
        assert memory_policy.spread("auto", 16) == Spread(is_interleaved=True)

    def test_a_wish_that_is_left_out_is_said(self):
        assert [each for each in planned(numa="isolate").placement.warnings if each.startswith("numa: the machine")]
        assert not [
            each for each in planned(nodes=2, numa="isolate").placement.warnings if "has nothing to do" in each
        ]


class TestHugePages:
    @pytest.mark.parametrize("wish", ["auto", "thp"])
    def test_transparent_ones_are_asked_for(self, wish):
        env = planned(huge_pages=wish).placement.env
        assert env["GLIBC_TUNABLES"] == "glibc.malloc.hugetlb=1"
        assert env["GGML_CUDA_HOST_MALLOC_THP"] == "1"

    def test_only_ik_with_cards_pins_with_them(self):
        for plan in (planned(gpus=0), planned(dialect="llama.cpp")):
            assert "GGML_CUDA_HOST_MALLOC_THP" not in plan.placement.env

    def test_off_asks_for_nothing(self):
        plan = planned(huge_pages="off")
        assert plan.placement.env == {"CUDA_DEVICE_ORDER": "PCI_BUS_ID"}
        assert "--no-mmap" in plan.arguments

    def test_static_ones_hold_the_whole_files(self):
        plan = planned(gpus=0, huge_pages="static")
        assert "-thp" in plan.arguments
        assert "--no-mmap" not in plan.arguments
        assert plan.placement.env == {}
        assert plan.pool_mib == 2 * sum(-(-header.file_size_bytes // 2**21) for header in HEADERS.headers)
        assert plan.needed_mib == plan.placement.host_mib - plan.placement.host_weights_mib

    def test_static_ones_and_pinned_memory_exclude_each_other(self):
        plan = planned(huge_pages="static")
        assert plan.placement.env["GGML_CUDA_NO_PINNED"] == "1"
        assert [each for each in plan.placement.warnings if each.startswith("huge_pages: 'static' keeps")]

    def test_static_ones_need_ik(self):
        with pytest.raises(ValueError, match=r"^huge_pages: 'static' needs ik_llama.cpp"):
            planned(huge_pages="static", dialect="llama.cpp")

    @pytest.mark.parametrize(("wish", "is_required"), [("auto", 0), ("off", 0), ("thp", 1), ("static", 1)])
    def test_only_what_is_asked_for_is_required(self, wish, is_required):
        plan = planned(gpus=0, huge_pages=wish)
        assert plan.least_huge_mib == is_required * (plan.placement.host_weights_mib // 2)

    def test_a_rehearsal_takes_no_pool(self):
        words = rehearse.arguments(planned(gpus=0, huge_pages="static").arguments, "/tmp/m.gguf")
        assert "-thp" not in words
        assert "--no-mmap" in words
