// SPDX-License-Identifier: Apache-2.0

package bpf

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"

	"github.com/cilium/ebpf"
	"github.com/cilium/ebpf/link"
	"golang.org/x/sys/unix"
)

// loopback is the ifindex of lo in every network namespace.
const loopback = 1

// HasTCX tells whether the kernel has TCX links, which survive a device's move into a sandbox.
func HasTCX() bool {
	_, err := link.QueryPrograms(link.QueryOptions{Target: loopback, Attach: ebpf.AttachTCXIngress})
	return !lacksTCX(err)
}

// lacksTCX tells whether a query for TCX programs failed because the kernel has none: to one before 6.6 it is a wrong argument.
func lacksTCX(err error) bool {
	return errors.Is(err, ebpf.ErrNotSupported) || errors.Is(err, unix.EINVAL)
}

// Hooks counts the socket hooks that are pinned, of all there are.
func (d *Datapath) Hooks() (pinned, all int) {
	for name := range sockHooks {
		if _, err := os.Lstat(filepath.Join(d.dir, "mst_link_"+name)); err == nil {
			pinned++
		}
	}
	return pinned, len(sockHooks)
}

// Caches says how full the maps are that make room by themselves, or that the daemon empties.
func (d *Datapath) Caches() (out []Fill, err error) {
	for _, name := range []string{"ct", "affinity", "frags", "traffic"} {
		m := d.maps[name]
		f := Fill{Name: name, Max: int(m.MaxEntries())}
		f.Entries, err = countEntries(m)
		if err != nil && !errors.Is(err, ebpf.ErrIterationAborted) { // entries go while we count
			return nil, fmt.Errorf("count the entries of mst_%s: %w", name, err)
		}
		out = append(out, f)
	}
	return out, nil
}
