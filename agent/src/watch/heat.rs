//! How hot pages are: in how many of the last windows each was written, or touched at all.
//!
//! A window is what happened between two looks, usually one request or one burst of requests. The last 32 windows of
//! each page are kept as bits; a page that none of them knows is forgotten, so that the table holds what the sandbox
//! uses and no more. Windows are the only clock: a sandbox that does nothing keeps its heat.

use std::collections::BTreeMap;

/// Windows that can be kept.
pub const WINDOWS_MAX: u32 = u32::BITS;

/// How warm a page is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Class {
    /// In few windows or none.
    Cold,
    /// In some.
    Warm,
    /// In most: not worth a delta, and first in the working set.
    Hot,
}

/// Where the classes begin.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct HeatSettings {
    /// Windows looked back, 1 to [`WINDOWS_MAX`].
    pub windows: u32,
    /// A page in at least so many percent of them is hot.
    pub hot_percent: u32,
    /// A page in at least so many percent of them is warm.
    pub warm_percent: u32,
    /// Windows that must have been seen before anything is called hot.
    pub windows_min: u32,
    /// Pages kept; those beyond are not known and thereby cold.
    pub pages_max: usize,
}

/// Settings that contradict each other.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum HeatSettingsError {
    /// Hot would begin below warm.
    #[error("hot begins at {hot} percent of the windows, warm not before {warm}")]
    HotBelowWarm {
        /// Percent.
        hot: u32,
        /// Percent.
        warm: u32,
    },
    /// Nothing would ever be known.
    #[error("{least} windows must have been seen, but only {kept} are kept")]
    NeverKnown {
        /// Windows.
        least: u32,
        /// Windows.
        kept: u32,
    },
}

impl HeatSettings {
    /// What a node does if it is not told otherwise.
    pub const DEFAULT: Self =
        Self { windows: 8, hot_percent: 60, warm_percent: 25, windows_min: 3, pages_max: 1 << 16 };

    /// Whether they fit together.
    pub const fn check(&self) -> Result<(), HeatSettingsError> {
        let Self { windows: kept, hot_percent: hot, warm_percent: warm, windows_min: least, .. } = *self;
        if hot < warm {
            return Err(HeatSettingsError::HotBelowWarm { hot, warm });
        }
        if least > kept {
            return Err(HeatSettingsError::NeverKnown { least, kept });
        }
        Ok(())
    }
}

impl Default for HeatSettings {
    fn default() -> Self {
        Self::DEFAULT
    }
}

/// A page of a process.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct PageOf {
    /// Number of the process.
    pub process: i32,
    /// Address / 4096.
    pub page: u64,
}

/// One bit per window, the newest lowest.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
struct History {
    written: u32,
    touched: u32,
}

/// What happened in one window. A written page counts as touched.
#[derive(Debug, Clone, Copy)]
pub enum Seen {
    /// Written.
    Written(PageOf),
    /// Read or written.
    Touched(PageOf),
}

/// The heat of all pages of one sandbox.
#[derive(Debug, Clone)]
pub struct Heat {
    settings: HeatSettings,
    pages: BTreeMap<PageOf, History>,
    windows: u32,
    unkept: u64,
}

/// Pages by class.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Summary {
    /// Hot by writes.
    pub hot: u64,
    /// Warm by writes.
    pub warm: u64,
    /// Written in the newest window.
    pub written: u64,
    /// Touched in the newest window.
    pub touched: u64,
    /// Windows this is about.
    pub windows: u32,
}

impl Heat {
    /// Of a sandbox nothing is known of. Settings out of range are brought into it.
    pub fn new(settings: HeatSettings) -> Self {
        let windows = settings.windows.clamp(1, WINDOWS_MAX);
        let windows_min = settings.windows_min.clamp(1, windows);
        let settings = HeatSettings { windows, windows_min, ..settings };
        Self { settings, pages: BTreeMap::new(), windows: 0, unkept: 0 }
    }

    /// Ends a window.
    pub fn record(&mut self, seen: impl IntoIterator<Item = Seen>) {
        let kept = u32::MAX >> (WINDOWS_MAX - self.settings.windows);
        self.pages.retain(|_, history| {
            history.written = (history.written << 1) & kept;
            history.touched = (history.touched << 1) & kept;
            history.touched != 0
        });
        self.windows = (self.windows + 1).min(self.settings.windows);
        for seen in seen {
            let (page, written) = match seen {
                Seen::Written(page) => (page, 1),
                Seen::Touched(page) => (page, 0),
            };
            if self.pages.len() >= self.settings.pages_max && !self.pages.contains_key(&page) {
                self.unkept = self.unkept.saturating_add(1);
                continue;
            }
            let history = self.pages.entry(page).or_default();
            history.written |= written;
            history.touched |= 1;
        }
    }

    /// How hot a page is by its writes.
    pub fn written(&self, page: PageOf) -> Class {
        self.class(self.pages.get(&page).map_or(0, |history| history.written.count_ones()))
    }

    /// How hot a page is by touches of any kind.
    pub fn touched(&self, page: PageOf) -> Class {
        self.class(self.pages.get(&page).map_or(0, |history| history.touched.count_ones()))
    }

    fn class(&self, count: u32) -> Class {
        let HeatSettings { hot_percent, warm_percent, windows_min, .. } = self.settings;
        // At least one: no threshold makes a page warm that nobody has touched.
        let reaches = |percent: u32| count > 0 && count * 100 >= percent.saturating_mul(self.windows);
        if self.windows < windows_min {
            Class::Cold
        } else if reaches(hot_percent) {
            Class::Hot
        } else if reaches(warm_percent) {
            Class::Warm
        } else {
            Class::Cold
        }
    }

    /// Hot pages, in order.
    pub fn hot(&self) -> impl Iterator<Item = PageOf> {
        let hot = |history: &History| self.class(history.written.count_ones()) == Class::Hot;
        self.pages.iter().filter(move |(_, history)| hot(history)).map(|(&page, _)| page)
    }

    /// Whether enough windows were seen for any page to be called warm.
    pub const fn is_known(&self) -> bool {
        self.windows >= self.settings.windows_min
    }

    /// Pages by class.
    pub fn summary(&self) -> Summary {
        let mut summary = Summary { windows: self.windows, ..Summary::default() };
        for history in self.pages.values() {
            match self.class(history.written.count_ones()) {
                Class::Hot => summary.hot += 1,
                Class::Warm => summary.warm += 1,
                Class::Cold => {}
            }
            summary.written += u64::from(history.written & 1);
            summary.touched += u64::from(history.touched & 1);
        }
        summary
    }

    /// Pages that found no room, ever.
    pub const fn unkept(&self) -> u64 {
        self.unkept
    }
}

#[cfg(test)]
mod tests {
    use proptest::collection::{btree_set, vec};
    use proptest::prelude::*;

    use super::*;

    fn page(page: u64) -> PageOf {
        PageOf { process: 1, page }
    }

    fn writes(pages: impl IntoIterator<Item = u64>) -> impl Iterator<Item = Seen> {
        pages.into_iter().map(|number| Seen::Written(page(number)))
    }

    #[test]
    fn a_page_written_in_most_windows_is_hot_and_cools_down() {
        let mut heat = Heat::new(HeatSettings { windows: 4, ..HeatSettings::default() });
        heat.record(writes([1, 2]));
        heat.record(writes([1]));
        assert_eq!(heat.written(page(1)), Class::Cold, "too early to say");
        heat.record(writes([1]).chain([Seen::Touched(page(3))]));
        assert_eq!(heat.written(page(1)), Class::Hot);
        assert_eq!(heat.written(page(2)), Class::Warm);
        assert_eq!((heat.written(page(3)), heat.touched(page(3))), (Class::Cold, Class::Warm));
        assert_eq!(heat.hot().collect::<Vec<_>>(), [page(1)]);
        let summary = heat.summary();
        assert_eq!((summary.hot, summary.warm, summary.written, summary.touched), (1, 1, 1, 2));
        for _ in 0..4 {
            heat.record([]);
        }
        assert_eq!((heat.written(page(1)), heat.pages.len()), (Class::Cold, 0), "forgotten");
    }

    #[test]
    fn settings_that_contradict_each_other_are_refused() {
        let usual = HeatSettings::DEFAULT;
        assert_eq!(usual.check(), Ok(()));
        let crossed = HeatSettings { hot_percent: 20, ..usual };
        assert_eq!(crossed.check(), Err(HeatSettingsError::HotBelowWarm { hot: 20, warm: 25 }));
        let never = HeatSettings { windows: 2, ..usual };
        assert_eq!(never.check(), Err(HeatSettingsError::NeverKnown { least: 3, kept: 2 }));
    }

    #[test]
    fn no_more_pages_are_kept_than_allowed() {
        let mut heat = Heat::new(HeatSettings { pages_max: 2, windows_min: 1, ..HeatSettings::default() });
        heat.record(writes(0..5));
        heat.record(writes([0, 1, 9]));
        assert_eq!((heat.pages.len(), heat.unkept()), (2, 4));
        assert_eq!((heat.written(page(0)), heat.written(page(9))), (Class::Hot, Class::Cold));
    }

    proptest! {
        /// Against counting by hand.
        #[test]
        fn classes_are_what_counting_says(
            windows in 1u32..=WINDOWS_MAX,
            hot in 0u32..120,
            warm in 0u32..120,
            log in vec(btree_set(0u64..12, 0..8), 0..70),
        ) {
            let settings = HeatSettings { windows, hot_percent: hot, warm_percent: warm, windows_min: 1, pages_max: 99 };
            let mut heat = Heat::new(settings);
            for window in &log {
                heat.record(writes(window.iter().copied()));
            }
            let last = &log[log.len().saturating_sub(windows as usize)..];
            for number in 0..12 {
                let count = last.iter().filter(|window| window.contains(&number)).count();
                let reaches = |percent: u32| count > 0 && count * 100 >= percent as usize * last.len();
                let expected = match (reaches(hot), reaches(warm)) {
                    (true, _) => Class::Hot,
                    (false, true) => Class::Warm,
                    (false, false) => Class::Cold,
                };
                prop_assert_eq!(heat.written(page(number)), expected);
                prop_assert_eq!(heat.touched(page(number)), expected);
            }
        }
    }
}
