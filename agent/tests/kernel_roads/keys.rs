//! Nothing is stored for a tenant whose key is not here, and nothing that was comes back under another one.

use medes_agent::{base, keys::Fits};
use medes_dedup::page::SnapshotId;
use medes_proto::{
    failure::{Failure, FailureKind},
    ids::TenantName,
};

use crate::{
    runner::Test,
    station::{Station, at_station, bytes, run, shows, value},
};

pub(crate) const TESTS: &[Test] = &[
    (
        "without_its_tenants_key_a_sandbox_stays_warm_and_under_another_one_no_image_opens",
        without_its_tenants_key_a_sandbox_stays_warm_and_under_another_one_no_image_opens,
    ),
    ("a_tenants_bytes_are_in_nothing_of_another_one", a_tenants_bytes_are_in_nothing_of_another_one),
];

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

/// Bytes that follow from a number: whoever knows it can have the same ones. A canary is a part of them that no compression makes smaller.
fn secret(number: u32) -> String {
    format!("import random\nkept.memory = random.Random({number}).randbytes(4096 * 64)")
}

fn a_tenants_bytes_are_in_nothing_of_another_one() {
    at_station(512 << 20, async |mut station: Station| {
        station.learn("acme", 7);
        station.learn("shop", 9);
        let function = crate::node::function();
        let (id, acme) = station.start_with(&function, "tenant = 'acme'").await;
        run(&acme, &secret(1)).await;
        let canary = bytes(&acme, "kept.memory[30000:30032]").await;
        let of_acme = SnapshotId::new(99).expect("an id");
        base::make_base(&station.roads, id, &acme, of_acme).await.expect("a base");

        // Of a tenant that has other bytes nothing shows them. Of one that guesses right its own copy is kept, as if nobody had it.
        for (number, has_it) in [(2, false), (1, true)] {
            let (id, shop) = station.start_with(&function, "tenant = 'shop'").await;
            run(&shop, &secret(number)).await;
            let (stored, deduped) = station.dedup(id, shop).await.expect("a dedup image");
            assert_eq!((deduped.bases.as_slice(), deduped.aligned_with), (&[][..], None), "{deduped:?}");
            assert_eq!(shows(stored.image.as_ref(), &canary), has_it);
            let (shop, _) = station.restore(stored).await.expect("back");
            shop.housing.remove().await.expect("removed");
        }
        // The tenant itself finds them there, so they could have been found.
        let (id, other) = station.start_with(&function, "tenant = 'acme'").await;
        run(&other, &secret(1)).await;
        let (stored, deduped) = station.dedup(id, other).await.expect("a dedup image");
        assert_eq!(deduped.bases, [of_acme]);
        assert!(!shows(stored.image.as_ref(), &canary), "the image refers to them");
        assert!(!station.registry.shows(&canary), "the registry has hashes under a key, no bytes");
        stored.housing.remove().await.expect("removed");
        acme.housing.remove().await.expect("removed");
    });
}
