//! What the paper says: the values of its figures and tables, each with where it stands and whether it is printed or was read from a drawing.
//!
//! Values that were read are exact to about one percent (times) and one (counts). Functions have our names: LinAlg is `linalg`, RNNModel is
//! `model-serve`, and so on in the order of the paper's table. Figures 12 and 15 are known by number; that 13, 14 and 16 are chunk size, chunks per page and
//! ASLR is our reading of their order.

use super::section::Sheet;

/// How a value is known.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Source {
    /// It is printed in the text or in a table.
    Text,
    /// It was read from the vector drawing of a figure.
    Drawing,
}

/// Values of one kind.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Series {
    pub(crate) figure: &'static str,
    pub(crate) what: &'static str,
    pub(crate) unit: &'static str,
    pub(crate) source: Source,
    pub(crate) points: &'static [(&'static str, f64)],
}

use Source::{Drawing, Text};

const fn series(
    figure: &'static str,
    what: &'static str,
    unit: &'static str,
    source: Source,
    points: &'static [(&'static str, f64)],
) -> Series {
    Series { figure, what, unit, source, points }
}

/// Values of the ten functions, in the order of the paper's table.
macro_rules! ten {
    ($a:expr, $b:expr, $c:expr, $d:expr, $e:expr, $f:expr, $g:expr, $h:expr, $i:expr, $j:expr) => {
        &[
            ("vanilla", $a),
            ("linalg", $b),
            ("image", $c),
            ("video", $d),
            ("mapreduce", $e),
            ("html", $f),
            ("auth", $g),
            ("feature", $h),
            ("model-serve", $i),
            ("model-train", $j),
        ]
    };
}

/// All of them.
pub(crate) const SERIES: &[Series] = &[
    series(
        "Fig 1",
        "ASLR off, mean",
        "fraction",
        Drawing,
        &[("64", 0.925), ("128", 0.9), ("256", 0.868), ("512", 0.812), ("1024", 0.735)],
    ),
    series(
        "Fig 1",
        "ASLR off, least",
        "fraction",
        Drawing,
        &[("64", 0.896), ("128", 0.868), ("256", 0.829), ("512", 0.769), ("1024", 0.673)],
    ),
    series(
        "Fig 1",
        "ASLR off, most",
        "fraction",
        Drawing,
        &[("64", 0.949), ("128", 0.927), ("256", 0.903), ("512", 0.857), ("1024", 0.802)],
    ),
    series(
        "Fig 1",
        "ASLR on, mean",
        "fraction",
        Drawing,
        &[("64", 0.883), ("128", 0.849), ("256", 0.81), ("512", 0.745), ("1024", 0.651)],
    ),
    series(
        "Fig 1",
        "ASLR on, least",
        "fraction",
        Drawing,
        &[("64", 0.856), ("128", 0.82), ("256", 0.774), ("512", 0.701), ("1024", 0.587)],
    ),
    series(
        "Fig 1",
        "ASLR on, most",
        "fraction",
        Drawing,
        &[("64", 0.897), ("128", 0.865), ("256", 0.83), ("512", 0.776), ("1024", 0.695)],
    ),
    series("Fig 1", "across functions, 64 B", "fraction", Drawing, &[("least", 0.84), ("most", 0.9)]),
    series(
        "Table 2",
        "execution",
        "ms",
        Text,
        ten![150.0, 250.0, 1200.0, 2000.0, 500.0, 400.0, 400.0, 1000.0, 1000.0, 3000.0],
    ),
    series("Table 2", "memory", "MB", Text, ten![17.0, 32.0, 26.4, 48.0, 32.0, 22.3, 22.3, 66.0, 90.0, 87.5]),
    series(
        "Table 3",
        "saved by dedup",
        "MB",
        Text,
        ten![4.6, 10.5, 11.36, 12.22, 5.1, 9.88, 4.79, 25.67, 52.23, 26.33],
    ),
    series(
        "Fig 8",
        "cold start",
        "ms",
        Drawing,
        ten![679.0, 834.0, 820.0, 739.0, 671.0, 793.0, 730.0, 931.0, 1574.0, 1233.0],
    ),
    series(
        "Fig 8",
        "read base pages",
        "ms",
        Drawing,
        ten![10.1, 20.7, 25.1, 25.9, 11.9, 20.9, 11.8, 41.2, 131.8, 51.3],
    ),
    series(
        "Fig 8",
        "compute pages",
        "ms",
        Drawing,
        ten![14.2, 37.2, 38.9, 53.4, 16.3, 34.9, 15.5, 127.9, 202.7, 107.1],
    ),
    series(
        "Fig 8",
        "CRIU",
        "ms",
        Drawing,
        ten![91.4, 99.2, 109.1, 60.1, 80.0, 97.0, 99.8, 119.1, 155.0, 136.1],
    ),
    series(
        "Fig 8",
        "dedup start",
        "ms",
        Drawing,
        ten![115.7, 157.1, 173.1, 139.4, 108.2, 152.7, 127.0, 288.2, 489.6, 294.5],
    ),
    series(
        "Fig 7",
        "cold starts, fixed",
        "requests",
        Drawing,
        ten![78.0, 120.0, 241.0, 264.0, 183.0, 49.0, 89.0, 213.0, 95.0, 352.0],
    ),
    series(
        "Fig 7",
        "cold starts, adaptive",
        "requests",
        Drawing,
        ten![145.0, 120.0, 391.0, 266.0, 334.0, 94.0, 155.0, 216.0, 314.0, 803.0],
    ),
    series(
        "Fig 7",
        "cold starts, Medes",
        "requests",
        Drawing,
        ten![52.0, 130.0, 217.0, 158.0, 178.0, 49.0, 73.0, 134.0, 80.0, 239.0],
    ),
    series(
        "Fig 7",
        "99.9p, fixed",
        "ms",
        Drawing,
        ten![729.0, 271.0, 1897.0, 2762.0, 990.0, 1136.0, 907.0, 2435.0, 1558.0, 4269.0],
    ),
    series(
        "Fig 7",
        "99.9p, adaptive",
        "ms",
        Drawing,
        ten![752.0, 271.0, 1963.0, 2756.0, 1103.0, 1163.0, 991.0, 2437.0, 1619.0, 4304.0],
    ),
    series(
        "Fig 7",
        "99.9p, Medes",
        "ms",
        Drawing,
        ten![398.0, 280.0, 1478.0, 2244.0, 783.0, 1140.0, 568.0, 1756.0, 1262.0, 3556.0],
    ),
    series(
        "Fig 7",
        "improvement of end-to-end latency, at most",
        "times",
        Text,
        &[("over fixed", 2.25), ("over adaptive", 2.75)],
    ),
    series("Fig 7", "sandboxes that were deduplicated", "fraction", Text, &[("all", 0.39)]),
    series(
        "Fig 9",
        "memory, Medes",
        "GB",
        Drawing,
        &[("mean", 21.4), ("median", 21.6), ("p10", 8.7), ("p90", 34.0)],
    ),
    series(
        "Fig 9",
        "memory, fixed",
        "GB",
        Drawing,
        &[("mean", 25.7), ("median", 30.9), ("p10", 7.3), ("p90", 36.5)],
    ),
    series("Fig 9", "memory, adaptive", "GB", Drawing, &[("mean", 16.7), ("median", 14.4), ("p90", 35.4)]),
    series(
        "Fig 9",
        "cold starts",
        "requests",
        Drawing,
        &[("Medes", 1450.0), ("fixed", 1315.0), ("adaptive", 3181.0)],
    ),
    series("Fig 9", "less memory than fixed", "fraction", Text, &[("mean", 0.114)]),
    series(
        "Fig 10",
        "cold starts, 40G",
        "requests",
        Drawing,
        &[("fixed", 1684.0), ("adaptive", 2838.0), ("Medes", 1310.0)],
    ),
    series(
        "Fig 10",
        "cold starts, 30G",
        "requests",
        Drawing,
        &[("fixed", 2137.0), ("adaptive", 2820.0), ("Medes", 1343.0)],
    ),
    series(
        "Fig 10",
        "cold starts, 20G",
        "requests",
        Drawing,
        &[("fixed", 2702.0), ("adaptive", 3384.0), ("Medes", 1603.0)],
    ),
    series(
        "Fig 10",
        "fewer cold starts than fixed",
        "fraction",
        Text,
        &[("40G", 0.22), ("30G", 0.37), ("20G", 0.4067)],
    ),
    series(
        "Fig 11",
        "99.9p at 20G, fixed",
        "ms",
        Drawing,
        ten![1574.0, 2766.0, 3008.0, 3575.0, 2628.0, 2533.0, 2542.0, 4223.0, 3394.0, 5804.0],
    ),
    series(
        "Fig 11",
        "99.9p at 20G, adaptive",
        "ms",
        Drawing,
        ten![1846.0, 2195.0, 2879.0, 2743.0, 2921.0, 1264.0, 1981.0, 4218.0, 3470.0, 5281.0],
    ),
    series(
        "Fig 11",
        "99.9p at 20G, Medes",
        "ms",
        Drawing,
        ten![670.0, 1779.0, 1985.0, 2741.0, 1118.0, 1213.0, 1315.0, 2501.0, 1600.0, 4830.0],
    ),
    series(
        "Fig 12",
        "cold starts, keep-alive",
        "requests",
        Drawing,
        &[("5 min", 3233.0), ("10 min", 2931.0), ("15 min", 3016.0), ("20 min", 4001.0), ("Medes", 1810.0)],
    ),
    series(
        "Fig 13",
        "cold starts, chunk size",
        "requests",
        Drawing,
        &[("32", 1729.0), ("64", 1810.0), ("128", 3318.0)],
    ),
    series("Fig 13", "saved per sandbox, chunk size", "MB", Text, &[("64", 28.8), ("128", 22.8)]),
    series("Fig 13", "average patch, chunk size", "B", Text, &[("32", 940.0), ("64", 611.0)]),
    series(
        "Fig 14",
        "cold starts, chunks per page",
        "requests",
        Drawing,
        &[("5", 1810.0), ("10", 3062.0), ("20", 3922.0)],
    ),
    series(
        "Fig 14",
        "saved per sandbox, chunks per page",
        "MB",
        Text,
        &[("5", 28.8), ("10", 31.5), ("20", 32.54)],
    ),
    series("Fig 14", "restore, chunks per page", "ms", Text, &[("5", 378.0), ("10", 478.0), ("20", 554.0)]),
    series(
        "Fig 15",
        "cold starts, keep-dedup",
        "requests",
        Drawing,
        &[("none", 2931.0), ("5 min", 2771.0), ("10 min", 2324.0), ("15 min", 1810.0), ("20 min", 1908.0)],
    ),
    series("Fig 16", "saved per sandbox, ASLR", "MB", Text, &[("off", 28.8), ("on", 12.1)]),
    series("Section 7.8", "dedup op", "s", Text, &[("vanilla", 2.0), ("model-train", 3.3)]),
    series("Section 7.8", "registry lookup of one page", "us", Text, &[("mean", 80.0)]),
    series("Section 7.8", "controller memory", "fraction more", Text, &[("all", 0.118)]),
    series(
        "Section 7.8",
        "agent metadata and bases, at most",
        "fraction of node memory",
        Text,
        &[("node", 0.1)],
    ),
];

/// One value; not a number where the paper has none.
pub(crate) fn value(figure: &str, what: &str, of: &str) -> f64 {
    let found = SERIES.iter().find(|series| series.figure == figure && series.what == what);
    let point = found.and_then(|series| series.points.iter().find(|(name, _)| *name == of));
    point.map_or(f64::NAN, |(_, value)| *value)
}

/// Everything in one table, for the end of the report.
pub(crate) fn sheet() -> Sheet {
    let mut sheet = Sheet::new(
        "All values of the paper that are used here",
        &["figure", "what", "of", "value", "unit", "known from"],
    );
    for Series { figure, what, unit, source, points } in SERIES {
        let known = match source {
            Text => "text",
            Drawing => "drawing",
        };
        for (of, value) in *points {
            sheet.push([*figure, what, of, &value.to_string(), unit, known].map(str::to_owned));
        }
    }
    sheet
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;

    #[test]
    fn every_figure_of_the_evaluation_has_values() {
        let figures: BTreeSet<&str> = SERIES.iter().map(|series| series.figure).collect();
        for wanted in [1, 7, 8, 9, 10, 11, 12, 13, 14, 15, 16].map(|number| format!("Fig {number}")) {
            assert!(figures.contains(wanted.as_str()), "{wanted}");
        }
        assert!(SERIES.iter().flat_map(|series| series.points).all(|(_, value)| value.is_finite()));
        let names: BTreeSet<_> = SERIES.iter().map(|series| (series.figure, series.what)).collect();
        assert_eq!(names.len(), SERIES.len(), "two series of one name");
    }

    #[test]
    fn functions_have_all_ten_values_or_are_named() {
        for series in SERIES.iter().filter(|series| series.figure == "Fig 8") {
            assert_eq!(series.points.len(), 10, "{}", series.what);
        }
        let parts = ["read base pages", "compute pages", "CRIU"];
        let sum: f64 = parts.iter().map(|part| value("Fig 8", part, "html")).sum();
        assert!((sum - value("Fig 8", "dedup start", "html")).abs() < 0.5, "parts are a whole");
        assert!(value("Fig 8", "CRIU", "fishing").is_nan());
    }

    #[test]
    fn the_table_is_complete() {
        let points: usize = SERIES.iter().map(|series| series.points.len()).sum();
        assert_eq!(sheet().rows.len(), points);
    }
}
