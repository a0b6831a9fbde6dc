// SPDX-License-Identifier: Apache-2.0

package link

import (
	"fmt"
	"net/netip"
	"os"
	"path/filepath"
	"strings"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
)

// InSandboxes lists the owners of our devices that are in sandboxes, whatever these are, with the addresses of slaves. A pair is there whose other
// end is in another namespace; slaves are looked for in every namespace that a process or a mount keeps.
func (h Host) InSandboxes() (map[string][]netip.Prefix, error) {
	links, err := whole(netlink.LinkList)
	if err != nil {
		return nil, fmt.Errorf("list the devices: %w", err)
	}
	out := map[string][]netip.Prefix{}
	for _, l := range links {
		owner, ours := strings.CutPrefix(l.Attrs().Alias, alias)
		if ours && isPairType(l.Type()) && l.Attrs().NetNsID >= 0 {
			out[owner] = nil
		}
	}
	for _, path := range namespaces() {
		_ = h.Do(path, func() error { // it may have ended meanwhile, and with it its devices
			return slavesHere(out)
		})
	}
	return out, nil
}

// slavesHere adds the slaves of ours in the thread's namespace.
func slavesHere(out map[string][]netip.Prefix) error {
	links, err := whole(netlink.LinkList)
	if err != nil {
		return err
	}
	for _, l := range links {
		owner, ours := strings.CutPrefix(l.Attrs().Alias, alias)
		if !ours || isPairType(l.Type()) {
			continue
		}
		addrs, err := whole(func() ([]netlink.Addr, error) { return netlink.AddrList(l, netlink.FAMILY_ALL) })
		if err != nil {
			return err
		}
		out[owner] = nil
		for _, a := range addrs {
			if p, ok := prefixOf(a.IPNet); ok && !p.Addr().IsLinkLocalUnicast() {
				out[owner] = append(out[owner], p)
			}
		}
	}
	return nil
}

// namespaces are paths of the network namespaces that processes run in or that are mounted, each once and without our own.
func namespaces() (paths []string) {
	candidates, _ := filepath.Glob("/proc/[0-9]*/ns/net")
	mounts, _ := os.ReadFile("/proc/self/mountinfo") // of none we know none
	for line := range strings.Lines(string(mounts)) {
		// ID PARENT MAJOR:MINOR ROOT MOUNTPOINT …, where the root of a namespace is net:[INODE]
		if fields := strings.Fields(line); len(fields) > 4 && strings.HasPrefix(fields[3], "net:[") {
			candidates = append(candidates, fields[4])
		}
	}
	seen := map[uint64]bool{}
	for _, path := range append([]string{"/proc/thread-self/ns/net"}, candidates...) {
		var info unix.Stat_t
		if unix.Stat(path, &info) != nil || seen[info.Ino] { // the kernel numbers all namespaces in one file system
			continue
		}
		seen[info.Ino] = true
		paths = append(paths, path)
	}
	return paths[min(1, len(paths)):]
}
