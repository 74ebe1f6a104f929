from pathlib import Path

from msmlp.model.platform.memory import free_host_memory

GIB = 2**30


def machine(root: Path, available: int, cgroup: str = "") -> Path:
    """A root folder with what a Linux kernel says of memory."""
    (root / "proc/self").mkdir(parents=True)
    (root / "proc/meminfo").write_text(f"MemTotal:  99999999 kB\nMemAvailable: {available // 1024} kB\n")
    (root / "proc/self/cgroup").write_text(cgroup)
    return root


def group(folder: Path, **files: object) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    for name, content in files.items():
        (folder / name.replace("__", ".")).write_text(f"{content}\n")


def test_without_limits_it_is_what_the_machine_has_available(tmp_path: Path) -> None:
    assert free_host_memory(machine(tmp_path, 8 * GIB, "0::/\n")) == 8 * GIB


def test_a_containers_limit_counts_less_what_is_used_but_for_the_page_cache(tmp_path: Path) -> None:
    root = machine(tmp_path, 8 * GIB, "0::/\n")
    group(
        root / "sys/fs/cgroup",
        memory__max=2 * GIB,
        memory__current=GIB,
        memory__stat=f"anon 5\ninactive_file {GIB // 2}",
    )
    assert free_host_memory(root) == GIB + GIB // 2


def test_so_do_the_limits_of_the_groups_above(tmp_path: Path) -> None:
    root = machine(tmp_path, 8 * GIB, "0::/pods/mine\n")
    mount = root / "sys/fs/cgroup"
    group(mount / "pods/mine", memory__max="max", memory__current=GIB, memory__stat="inactive_file 0")
    group(mount / "pods", memory__max=3 * GIB, memory__current=GIB, memory__stat="inactive_file 0")
    assert free_host_memory(root) == 2 * GIB


def test_so_do_limits_of_the_older_kind(tmp_path: Path) -> None:
    root = machine(tmp_path, 8 * GIB, "9:cpu:/\n4:memory:/docker/0123\n0::/\n")
    # In a container the group's path is the machine's, and its own files lie at the top.
    group(
        root / "sys/fs/cgroup/memory",
        memory__limit_in_bytes=GIB,
        memory__usage_in_bytes=GIB // 4,
        memory__stat="total_inactive_file 0",
    )
    assert free_host_memory(root) == GIB * 3 // 4


def test_more_used_than_allowed_is_nothing_left(tmp_path: Path) -> None:
    root = machine(tmp_path, 8 * GIB, "0::/\n")
    group(root / "sys/fs/cgroup", memory__max=1, memory__current=GIB, memory__stat="inactive_file 0")
    assert free_host_memory(root) == 0


def test_where_there_is_no_such_folder_it_is_all_there_is(tmp_path: Path) -> None:
    assert free_host_memory(tmp_path) > 0


def test_this_machine_has_some() -> None:
    assert free_host_memory() > 0
