//! A shared library with an allocator of its own, opened and closed.

#![cfg(all(target_os = "linux", target_env = "gnu", not(target_feature = "crt-static"), not(miri)))]

use std::env;
use std::ffi::{CStr, CString, c_char, c_void};
use std::mem;
use std::path::PathBuf;
use std::sync::mpsc;
use std::thread;
use std::time::Duration;

#[path = "common/child.rs"]
mod child;
#[path = "common/mappings.rs"]
mod mappings;
use child::{assert_ended_well, in_child};
use mappings::mappings;

/// `examples/plugin.rs`, which is built with all tests, but not with one; `None` if it was not.
fn plugin() -> Option<PathBuf> {
    let this = env::current_exe().expect("Linux knows");
    let built = this.parent()?.parent()?.join("examples/libplugin.so");
    if built.exists() {
        return Some(built);
    }
    println!("skipped: there is no {}", built.display());
    None
}

struct Plugin(*mut c_void);

impl Plugin {
    fn open() -> Plugin {
        let path = plugin().expect("it was there").into_os_string().into_encoded_bytes();
        let path = CString::new(path).expect("a path");
        // SAFETY: what runs when it is opened is Rust's.
        let opened = unsafe { libc::dlopen(path.as_ptr(), libc::RTLD_NOW) };
        assert!(!opened.is_null());
        Plugin(opened)
    }

    fn function(&self, name: &CStr) -> *mut c_void {
        // SAFETY: the library is open.
        let found = unsafe { libc::dlsym(self.0, name.as_ptr()) };
        assert!(!found.is_null());
        found
    }

    /// Has the library allocate and free.
    fn reverse(&self, text: &CStr) -> String {
        // SAFETY: these are the types of the example.
        unsafe {
            let reverse: unsafe extern "C" fn(*const c_char) -> *mut c_char =
                mem::transmute(self.function(c"plugin_reverse"));
            let free: unsafe extern "C" fn(*mut c_char) = mem::transmute(self.function(c"plugin_free"));
            let reversed = reverse(text.as_ptr());
            let copy = CStr::from_ptr(reversed).to_str().expect("UTF-8").to_owned();
            free(reversed);
            copy
        }
    }

    fn close(self) {
        // SAFETY: nobody uses what was found in it.
        assert_eq!(unsafe { libc::dlclose(self.0) }, 0);
    }
}

#[test]
fn a_thread_that_used_a_library_ends_after_it_was_closed() {
    if plugin().is_some() {
        assert_ended_well(&in_child(
            |_| (),
            || {
                let (opened, used) = (mpsc::channel(), mpsc::channel());
                let user = thread::spawn(move || {
                    let plugin: usize = opened.1.recv().expect("it is opened");
                    let plugin = mem::ManuallyDrop::new(Plugin(plugin as *mut c_void));
                    used.0.send(plugin.reverse(c"a thread that outlives it")).expect("it is waited for");
                    // Until it was closed.
                    assert!(opened.1.recv().is_err());
                });
                let plugin = Plugin::open();
                opened.0.send(plugin.0 as usize).expect("the thread waits");
                assert_eq!(used.1.recv().expect("the thread answers"), "it outlives that thread a");
                plugin.close();
                drop(opened.0);
                user.join().expect("it ends well");
            },
        ));
    }
}

#[test]
fn what_a_library_has_going_on_goes_on_after_it_was_closed() {
    if plugin().is_some() {
        assert_ended_well(&in_child(
            |command| {
                command
                    .env("PMA_BACKGROUND_PURGE", "1")
                    .env("PMA_PURGE_MS", "1")
                    .env("PMA_DUMP_SIGNAL", "USR2");
            },
            || {
                let plugin = Plugin::open();
                assert_eq!(plugin.reverse(c"in the background"), "background the in");
                plugin.close();
                thread::sleep(Duration::from_millis(50));
            },
        ));
    }
}

#[test]
fn a_library_that_is_opened_again_has_the_heap_that_it_had() {
    if plugin().is_some() {
        assert_ended_well(&in_child(
            |_| (),
            || {
                let mut before = None;
                for _ in 0..20 {
                    let plugin = Plugin::open();
                    assert_eq!(plugin.reverse(c"and again"), "again and");
                    plugin.close();
                    assert!(mappings() <= *before.get_or_insert(mappings() + 4), "{} mappings", mappings());
                }
            },
        ));
    }
}
