//! Statistics of the unified hierarchy.

use std::fs;
use std::path::Path;

use containerd_shim_protos::cgroups_v2::metrics::{
    CPUStat, HugeTlbStat, IOEntry, IOStat, MemoryEvents, MemoryStat, Metrics, PSIData, PSIStats,
    PidsStat, RdmaEntry, RdmaStat,
};
use containerd_shim_protos::protobuf::MessageField;

use super::files::{Keyed, Nested, device, huge_page_sizes, number};

/// Reads what there is.
pub fn read(folder: &Path) -> Metrics {
    Metrics {
        pids: MessageField::some(PidsStat {
            current: number(folder, "pids.current").unwrap_or_default(),
            limit: number(folder, "pids.max").unwrap_or_default(),
            ..PidsStat::default()
        }),
        cpu: MessageField::some(cpu(folder)),
        memory: MessageField::some(memory(folder)),
        rdma: MessageField::some(rdma(folder)),
        io: MessageField::some(io(folder)),
        hugetlb: hugetlb(folder),
        memory_events: MessageField::some(memory_events(folder)),
        ..Metrics::default()
    }
}

fn cpu(folder: &Path) -> CPUStat {
    let stat = Keyed::read(folder, "cpu.stat");
    CPUStat {
        usage_usec: stat.get("usage_usec"),
        user_usec: stat.get("user_usec"),
        system_usec: stat.get("system_usec"),
        nr_periods: stat.get("nr_periods"),
        nr_throttled: stat.get("nr_throttled"),
        throttled_usec: stat.get("throttled_usec"),
        nr_bursts: stat.get("nr_bursts"),
        burst_usec: stat.get("burst_usec"),
        psi: pressure(folder, "cpu.pressure"),
        ..CPUStat::default()
    }
}

fn memory(folder: &Path) -> MemoryStat {
    let stat = Keyed::read(folder, "memory.stat");
    let of = |file: &str| number(folder, file).unwrap_or_default();
    MemoryStat {
        anon: stat.get("anon"),
        file: stat.get("file"),
        kernel_stack: stat.get("kernel_stack"),
        slab: stat.get("slab"),
        sock: stat.get("sock"),
        shmem: stat.get("shmem"),
        file_mapped: stat.get("file_mapped"),
        file_dirty: stat.get("file_dirty"),
        file_writeback: stat.get("file_writeback"),
        anon_thp: stat.get("anon_thp"),
        inactive_anon: stat.get("inactive_anon"),
        active_anon: stat.get("active_anon"),
        inactive_file: stat.get("inactive_file"),
        active_file: stat.get("active_file"),
        unevictable: stat.get("unevictable"),
        slab_reclaimable: stat.get("slab_reclaimable"),
        slab_unreclaimable: stat.get("slab_unreclaimable"),
        pgfault: stat.get("pgfault"),
        pgmajfault: stat.get("pgmajfault"),
        workingset_refault: stat.get("workingset_refault"),
        workingset_activate: stat.get("workingset_activate"),
        workingset_nodereclaim: stat.get("workingset_nodereclaim"),
        pgrefill: stat.get("pgrefill"),
        pgscan: stat.get("pgscan"),
        pgsteal: stat.get("pgsteal"),
        pgactivate: stat.get("pgactivate"),
        pgdeactivate: stat.get("pgdeactivate"),
        pglazyfree: stat.get("pglazyfree"),
        pglazyfreed: stat.get("pglazyfreed"),
        thp_fault_alloc: stat.get("thp_fault_alloc"),
        thp_collapse_alloc: stat.get("thp_collapse_alloc"),
        usage: of("memory.current"),
        usage_limit: of("memory.max"),
        swap_usage: of("memory.swap.current"),
        swap_limit: of("memory.swap.max"),
        max_usage: of("memory.peak"),
        swap_max_usage: of("memory.swap.peak"),
        psi: pressure(folder, "memory.pressure"),
        ..MemoryStat::default()
    }
}

fn memory_events(folder: &Path) -> MemoryEvents {
    let events = Keyed::read(folder, "memory.events");
    MemoryEvents {
        low: events.get("low"),
        high: events.get("high"),
        max: events.get("max"),
        oom: events.get("oom"),
        oom_kill: events.get("oom_kill"),
        oom_group_kill: events.get("oom_group_kill"),
        ..MemoryEvents::default()
    }
}

fn io(folder: &Path) -> IOStat {
    let entry = |line: Nested| {
        let (major, minor) = device(&line.key)?;
        Some(IOEntry {
            major,
            minor,
            rbytes: line.get("rbytes"),
            wbytes: line.get("wbytes"),
            rios: line.get("rios"),
            wios: line.get("wios"),
            ..IOEntry::default()
        })
    };
    IOStat {
        usage: Nested::read(folder, "io.stat")
            .into_iter()
            .filter_map(entry)
            .collect(),
        psi: pressure(folder, "io.pressure"),
        ..IOStat::default()
    }
}

fn rdma(folder: &Path) -> RdmaStat {
    let entries = |file: &str| {
        let entry = |line: Nested| RdmaEntry {
            hca_handles: u32::try_from(line.get("hca_handle")).unwrap_or(u32::MAX),
            hca_objects: u32::try_from(line.get("hca_object")).unwrap_or(u32::MAX),
            device: line.key,
            ..RdmaEntry::default()
        };
        Nested::read(folder, file).into_iter().map(entry).collect()
    };
    RdmaStat {
        current: entries("rdma.current"),
        limit: entries("rdma.max"),
        ..RdmaStat::default()
    }
}

fn hugetlb(folder: &Path) -> Vec<HugeTlbStat> {
    let read = |size: String| HugeTlbStat {
        current: number(folder, &format!("hugetlb.{size}.current")).unwrap_or_default(),
        max: number(folder, &format!("hugetlb.{size}.max")).unwrap_or_default(),
        failcnt: Keyed::read(folder, &format!("hugetlb.{size}.events")).get("max"),
        pagesize: size,
        ..HugeTlbStat::default()
    };
    huge_page_sizes(folder, ".current")
        .into_iter()
        .map(read)
        .collect()
}

fn pressure(folder: &Path, file: &str) -> MessageField<PSIStats> {
    // With pressure accounting off the file is there and cannot be read.
    let Ok(text) = fs::read_to_string(folder.join(file)) else {
        return MessageField::none();
    };
    let mut stats = PSIStats::default();
    for line in text.lines().map(Nested::parse) {
        let data = MessageField::some(PSIData {
            avg10: line.fraction("avg10"),
            avg60: line.fraction("avg60"),
            avg300: line.fraction("avg300"),
            total: line.get("total"),
            ..PSIData::default()
        });
        match line.key.as_str() {
            "some" => stats.some = data,
            "full" => stats.full = data,
            _ => {}
        }
    }
    MessageField::some(stats)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn folder_of_a_container() {
        let dir = tempfile::tempdir().unwrap();
        for (file, text) in [
            ("pids.current", "3\n"),
            ("pids.max", "max\n"),
            ("cpu.stat", "usage_usec 15\nuser_usec 10\nsystem_usec 5\n"),
            ("memory.stat", "anon 4096\nshmem 12\n"),
            ("memory.current", "8192\n"),
            ("memory.max", "max\n"),
            ("memory.events", "low 0\noom 2\noom_kill 1\n"),
            (
                "io.stat",
                "8:0 rbytes=10 wbytes=20 rios=1 wios=2 dbytes=0 dios=0\n253:0 \n",
            ),
            (
                "io.pressure",
                "some avg10=0.50 avg60=0.00 avg300=0.00 total=9\n",
            ),
            ("hugetlb.2MB.current", "2097152\n"),
            ("hugetlb.2MB.rsvd.current", "0\n"),
            ("hugetlb.2MB.events", "max 4\n"),
        ] {
            fs::write(dir.path().join(file), text).unwrap();
        }
        let metrics = read(dir.path());
        assert_eq!((metrics.pids.current, metrics.pids.limit), (3, u64::MAX));
        assert_eq!(metrics.cpu.usage_usec, 15);
        assert_eq!((metrics.memory.anon, metrics.memory.usage), (4096, 8192));
        assert_eq!(metrics.memory_events.oom_kill, 1);
        assert_eq!(metrics.io.usage.len(), 2);
        assert_eq!(metrics.io.usage[0].wbytes, 20);
        assert_eq!(metrics.io.psi.some.total, 9);
        assert!(metrics.cpu.psi.is_none());
        assert_eq!(metrics.hugetlb.len(), 1);
        assert_eq!(
            (metrics.hugetlb[0].current, metrics.hugetlb[0].failcnt),
            (2_097_152, 4)
        );
    }
}
