//! Nothing is stored for a tenant whose key is not here, and nothing that was comes back under another one.

use medes_agent::keys::Fits;
use medes_proto::{
    failure::{Failure, FailureKind},
    ids::TenantName,
};

use crate::{
    runner::Test,
    station::{Station, at_station, value},
};

pub(crate) const TESTS: &[Test] = &[(
    "without_its_tenants_key_a_sandbox_stays_warm_and_under_another_one_no_image_opens",
    without_its_tenants_key_a_sandbox_stays_warm_and_under_another_one_no_image_opens,
)];

fn without_its_tenants_key_a_sandbox_stays_warm_and_under_another_one_no_image_opens() {
    at_station(512 << 20, async |mut station: Station| {
        let tenant: TenantName = "default".parse().expect("a name");
        let (id, warm) = station.start().await;
        station.roads.keys.forget(&tenant, true);
        let Err(not) = station.dedup(id, warm).await else { panic!("stored under no key") };
        let failure = not.error.failure(id);
        assert!(failure.message.contains("the key of tenant default"), "{failure:?}");
        assert_eq!(value(&not.warm, "6 * 7").await, "42", "it is as it was");

        assert_eq!(station.learn("default", 7), Fits::Yes);
        let (stored, _) = station.dedup(id, not.warm).await.expect("a dedup image");
        assert_eq!(station.learn("default", 8), Fits::No);
        let Err(not) = station.restore(stored).await else { panic!("opened with another key") };
        let failure = Failure::from_error(FailureKind::Internal, &not.error);
        assert!(failure.message.contains("another key"), "{failure:?}");
        not.housing.remove().await.expect("removed");
    });
}
