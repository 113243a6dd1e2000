//! A heat map: where in its address space a sandbox's memory is, and how warm. Never what is in it.

use crate::{
    WireError,
    ids::SandboxId,
    limits::{HEAT_MAPPINGS_MAX, HEAT_NAME_BYTES_MAX, HEAT_RANGES_MAX},
    wire,
};
pub use wire::PageClass;

impl PageClass {
    /// All that a page can be, the coldest first.
    pub const ALL: [Self; 7] =
        [Self::File, Self::Swapped, Self::Cold, Self::Private, Self::Read, Self::Warm, Self::Hot];

    /// The word people see.
    pub const fn word(self) -> &'static str {
        match self {
            Self::Unspecified => "absent",
            Self::File => "file",
            Self::Private => "private",
            Self::Swapped => "swapped",
            Self::Hot => "hot",
            Self::Warm => "warm",
            Self::Cold => "cold",
            Self::Read => "read",
        }
    }
}

/// A sandbox's memory.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct HeatMap {
    /// Whose.
    pub sandbox: SandboxId,
    /// Who saw it: "procfs" or "watch".
    pub source: String,
    /// By process, then by address.
    pub mappings: Vec<Mapping>,
    /// There is more than one map may hold.
    pub truncated: bool,
}

/// One mapping of one process.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Mapping {
    /// Of which process, as the node numbers it.
    pub pid: i32,
    /// Address of its first byte.
    pub start: u64,
    /// Its length.
    pub pages: u64,
    /// A file's path, `[heap]`, `[stack]`, or nothing.
    pub name: String,
    /// In order, without overlap; other pages are not present.
    pub ranges: Vec<Range>,
}

/// Pages of one class, side by side.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Range {
    /// From the mapping's start.
    pub first: u64,
    /// How many.
    pub pages: u64,
    /// What they are.
    pub class: PageClass,
}

impl HeatMap {
    /// Pages of a class.
    pub fn count(&self, class: PageClass) -> u64 {
        self.mappings.iter().map(|mapping| mapping.count(class)).fold(0, u64::saturating_add)
    }
}

impl Mapping {
    /// Pages of a class.
    pub fn count(&self, class: PageClass) -> u64 {
        let ranges = self.ranges.iter().filter(|range| range.class == class);
        ranges.map(|range| range.pages).fold(0, u64::saturating_add)
    }
}

impl From<HeatMap> for wire::HeatReply {
    fn from(map: HeatMap) -> Self {
        let HeatMap { sandbox, source, mappings, truncated } = map;
        let mapping = |Mapping { pid, start, pages, name, ranges }| wire::HeatMapping {
            pid,
            start,
            pages,
            name: crate::failure::cut(name, HEAT_NAME_BYTES_MAX),
            ranges: ranges
                .into_iter()
                .map(|Range { first, pages, class }| wire::HeatRange { first, pages, class: class.into() })
                .collect(),
        };
        let mappings = mappings.into_iter().map(mapping).collect();
        Self { sandbox: sandbox.get(), source, mappings, truncated }
    }
}

impl TryFrom<wire::HeatReply> for HeatMap {
    type Error = WireError;

    fn try_from(raw: wire::HeatReply) -> Result<Self, WireError> {
        let wire::HeatReply { sandbox, source, mappings, truncated } = raw;
        if source.len() > HEAT_NAME_BYTES_MAX {
            return Err(WireError::invalid("heat.source", "too long"));
        }
        if mappings.len() > HEAT_MAPPINGS_MAX {
            return Err(WireError::invalid("heat.mappings", "too many"));
        }
        if mappings.iter().map(|mapping| mapping.ranges.len()).sum::<usize>() > HEAT_RANGES_MAX {
            return Err(WireError::invalid("heat.ranges", "too many"));
        }
        Ok(Self {
            sandbox: SandboxId::from_wire(sandbox, "heat.sandbox")?,
            source,
            mappings: mappings.into_iter().map(TryInto::try_into).collect::<Result<_, _>>()?,
            truncated,
        })
    }
}

impl TryFrom<wire::HeatMapping> for Mapping {
    type Error = WireError;

    fn try_from(raw: wire::HeatMapping) -> Result<Self, WireError> {
        let wire::HeatMapping { pid, start, pages, name, ranges } = raw;
        if name.len() > HEAT_NAME_BYTES_MAX {
            return Err(WireError::invalid("heat.name", "too long"));
        }
        let mut checked = Vec::with_capacity(ranges.len());
        let mut end = 0;
        for wire::HeatRange { first, pages: length, class } in ranges {
            let class = PageClass::try_from(class).ok().filter(|class| *class != PageClass::Unspecified);
            let class = class.ok_or(WireError::invalid("heat.class", "unknown"))?;
            let range_end = first.checked_add(length).filter(|&end| length > 0 && end <= pages);
            let range_end = range_end.ok_or(WireError::invalid("heat.ranges", "outside of the mapping"))?;
            if first < end {
                return Err(WireError::invalid("heat.ranges", "not in order"));
            }
            end = range_end;
            checked.push(Range { first, pages: length, class });
        }
        Ok(Self { pid, start, pages, name, ranges: checked })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn map() -> HeatMap {
        let range = |first, pages, class| Range { first, pages, class };
        let ranges =
            vec![range(0, 2, PageClass::Private), range(2, 1, PageClass::File), range(7, 3, PageClass::Hot)];
        let mapping = Mapping { pid: 7, start: 0x7000_0000, pages: 10, name: "[heap]".into(), ranges };
        let sandbox = SandboxId::of(1, 2).unwrap();
        HeatMap { sandbox, source: "procfs".into(), mappings: vec![mapping], truncated: false }
    }

    #[test]
    fn a_map_comes_back_from_the_wire() {
        assert_eq!(HeatMap::try_from(wire::HeatReply::from(map())), Ok(map()));
        assert_eq!((map().count(PageClass::Private), map().count(PageClass::Cold)), (2, 0));
    }

    #[test]
    fn ranges_that_make_no_sense_are_refused() {
        let good = || wire::HeatReply::from(map());
        let changes: [fn(&mut wire::HeatReply); 6] = [
            |raw| raw.mappings[0].ranges[2].pages = 4,
            |raw| raw.mappings[0].ranges[1].first = 1,
            |raw| raw.mappings[0].ranges[0].pages = 0,
            |raw| raw.mappings[0].ranges[0].first = u64::MAX,
            |raw| raw.mappings[0].ranges[0].class = 99,
            |raw| raw.mappings = vec![raw.mappings[0].clone(); HEAT_MAPPINGS_MAX + 1],
        ];
        for change in changes {
            let mut raw = good();
            change(&mut raw);
            assert!(HeatMap::try_from(raw).is_err());
        }
    }
}
