//! Every line that the example `eight_pages` prints. It is run in a process of its own, which is this test again:
//! so the example's standard output is seen, and no other build is needed.

use std::env;
use std::process::Command;

#[path = "../examples/eight_pages.rs"]
mod example;

/// Printed before the example's output: all before it is the test harness's.
const MARKER: &str = "== eight_pages ==";
const CHILD: &str = "PMA_EIGHT_PAGES_CHILD";

/// What the example prints, with addresses as offsets from the heap's start.
const EXPECTED: &str = "\
Initialised:
|------------Allocator Info------------|
Memory heap: 32768
Page size: 4096
Amount of pages: 8
|--------------Pages Info--------------|
0.Status: Free;Address: +0x0;
1.Status: Free;Address: +0x1000;
2.Status: Free;Address: +0x2000;
3.Status: Free;Address: +0x3000;
4.Status: Free;Address: +0x4000;
5.Status: Free;Address: +0x5000;
6.Status: Free;Address: +0x6000;
7.Status: Free;Address: +0x7000;
|--------------------------------------|

Allocated 8193 bytes:
|------------Allocator Info------------|
Memory heap: 32768
Page size: 4096
Amount of pages: 8
|--------------Pages Info--------------|
0.Status: Multi;Address: +0x0;
1.Status: Multi;Address: +0x1000;
2.Status: Multi;Address: +0x2000;
3.Status: Free;Address: +0x3000;
4.Status: Free;Address: +0x4000;
5.Status: Free;Address: +0x5000;
6.Status: Free;Address: +0x6000;
7.Status: Free;Address: +0x7000;
|--------------------------------------|

Allocated 64 and 65 bytes:
|------------Allocator Info------------|
Memory heap: 32768
Page size: 4096
Amount of pages: 8
|--------------Pages Info--------------|
0.Status: Multi;Address: +0x0;
1.Status: Multi;Address: +0x1000;
2.Status: Multi;Address: +0x2000;
3.Status: Divided;Address: +0x3040;Class size: 64;Free blocks: 63;
4.Status: Divided;Address: +0x4080;Class size: 128;Free blocks: 31;
5.Status: Free;Address: +0x5000;
6.Status: Free;Address: +0x6000;
7.Status: Free;Address: +0x7000;
|--------------------------------------|

Reallocated the block of 64 bytes to 200:
|------------Allocator Info------------|
Memory heap: 32768
Page size: 4096
Amount of pages: 8
|--------------Pages Info--------------|
0.Status: Multi;Address: +0x0;
1.Status: Multi;Address: +0x1000;
2.Status: Multi;Address: +0x2000;
3.Status: Free;Address: +0x3000;
4.Status: Divided;Address: +0x4080;Class size: 128;Free blocks: 31;
5.Status: Divided;Address: +0x5100;Class size: 256;Free blocks: 15;
6.Status: Free;Address: +0x6000;
7.Status: Free;Address: +0x7000;
|--------------------------------------|

Reallocated the block of 8193 bytes to 200:
|------------Allocator Info------------|
Memory heap: 32768
Page size: 4096
Amount of pages: 8
|--------------Pages Info--------------|
0.Status: Free;Address: +0x0;
1.Status: Free;Address: +0x1000;
2.Status: Free;Address: +0x2000;
3.Status: Free;Address: +0x3000;
4.Status: Divided;Address: +0x4080;Class size: 128;Free blocks: 31;
5.Status: Divided;Address: +0x5200;Class size: 256;Free blocks: 14;
6.Status: Free;Address: +0x6000;
7.Status: Free;Address: +0x7000;
|--------------------------------------|

Freed a block of 200 bytes:
|------------Allocator Info------------|
Memory heap: 32768
Page size: 4096
Amount of pages: 8
|--------------Pages Info--------------|
0.Status: Free;Address: +0x0;
1.Status: Free;Address: +0x1000;
2.Status: Free;Address: +0x2000;
3.Status: Free;Address: +0x3000;
4.Status: Divided;Address: +0x4080;Class size: 128;Free blocks: 31;
5.Status: Divided;Address: +0x5000;Class size: 256;Free blocks: 15;
6.Status: Free;Address: +0x6000;
7.Status: Free;Address: +0x7000;
|--------------------------------------|

";

/// Where the address of a line stands, if it has one.
fn address(line: &str) -> Option<(std::ops::Range<usize>, usize)> {
    let start = line.find("Address: ")? + "Address: ".len();
    let end = start + line[start..].find(';')?;
    let address = usize::from_str_radix(line[start..end].strip_prefix("0x")?, 16).ok()?;
    Some((start..end, address))
}

#[test]
fn the_example_prints_the_page_table_after_every_step() {
    if env::var_os(CHILD).is_some() {
        println!("{MARKER}");
        example::main();
        std::process::exit(0);
    }
    let child = Command::new(env::current_exe().unwrap())
        .args(["--exact", "the_example_prints_the_page_table_after_every_step", "--nocapture"])
        .env(CHILD, "1")
        .output()
        .unwrap();
    assert!(child.status.success(), "{child:?}");
    let output = String::from_utf8(child.stdout).unwrap();
    let (_, printed) = output.split_once(&format!("{MARKER}\n")).expect("the child runs the example");

    // Page 0 is Free at first, so its address is the heap's.
    let (_, start) = printed.lines().find_map(address).expect("the first dump shows page 0");
    assert_eq!(start % 4096, 0);
    let mut expected = EXPECTED.lines();
    for (number, line) in printed.lines().enumerate() {
        let relative = match address(line) {
            Some((at, address)) => {
                format!("{}+{:#x}{}", &line[..at.start], address.wrapping_sub(start), &line[at.end..])
            }
            None => line.to_owned(),
        };
        assert_eq!(Some(relative.as_str()), expected.next(), "line {number} of\n{printed}");
    }
    assert_eq!(expected.next(), None, "the example stops too early:\n{printed}");
}
