// SPDX-License-Identifier: Apache-2.0

package link

import (
	"errors"
	"fmt"
	"net/netip"
	"os"
	"path/filepath"
	"strings"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
)

// InSandbox is where a device of ours is that is not on the host.
type InSandbox struct {
	Path  string         // of the sandbox's network namespace; "" of a pair, of which the host's end alone was looked at
	Addrs []netip.Prefix // of a slave
}

// InSandboxes lists our devices that are in sandboxes, whatever these are, by their owners. A pair is there whose other
// end is in another namespace; slaves of the host's devices are looked for in every namespace that a process or a mount keeps.
// An error says that not all could be looked at.
func (h Host) InSandboxes() (map[string]InSandbox, error) {
	links, err := whole(netlink.LinkList)
	if err != nil {
		return nil, fmt.Errorf("list the devices: %w", err)
	}
	out := map[string]InSandbox{}
	for _, l := range links {
		owner, ours := strings.CutPrefix(l.Attrs().Alias, alias)
		if ours && isPairType(l.Type()) && l.Attrs().NetNsID >= 0 {
			out[owner] = InSandbox{}
		}
	}
	host, err := os.Open("/proc/thread-self/ns/net")
	if err != nil {
		return nil, fmt.Errorf("open the host's network namespace: %w", err)
	}
	defer host.Close()
	paths, err := namespacesBeside(host)
	if err != nil {
		return nil, fmt.Errorf("list the network namespaces: %w", err)
	}
	for _, path := range paths {
		err := h.Do(path, func() error { return slavesHere(path, int(host.Fd()), out) })
		if err != nil && !ended(path, err) {
			return nil, fmt.Errorf("look for slaves in the network namespace %s: %w", path, err)
		}
	}
	return out, nil
}

// slavesHere adds the slaves of the host's devices in the thread's namespace, which is at path.
func slavesHere(path string, host int, out map[string]InSandbox) error {
	links, err := whole(netlink.LinkList)
	if err != nil {
		return err
	}
	for _, l := range links {
		owner, ours := strings.CutPrefix(l.Attrs().Alias, alias)
		if !ours || l.Type() != "macvlan" && l.Type() != "ipvlan" {
			continue
		}
		// a mark alone anybody can make, in a namespace of their own
		if id, err := netlink.GetNetNsIdByFd(host); err != nil {
			return err
		} else if id < 0 || l.Attrs().NetNsID != id {
			continue
		}
		addrs, err := whole(func() ([]netlink.Addr, error) { return netlink.AddrList(l, netlink.FAMILY_ALL) })
		if err != nil {
			return err
		}
		found := InSandbox{Path: path}
		for _, a := range addrs {
			if p, ok := prefixOf(a.IPNet); ok && !p.Addr().IsLinkLocalUnicast() {
				found.Addrs = append(found.Addrs, p)
			}
		}
		out[owner] = found
	}
	return nil
}

// namespacesBeside are paths of the other network namespaces that processes run in or that are mounted, each once.
func namespacesBeside(host *os.File) (paths []string, err error) {
	var info unix.Stat_t
	if err := unix.Fstat(int(host.Fd()), &info); err != nil {
		return nil, err
	}
	seen := map[uint64]bool{info.Ino: true}
	var candidates []string
	processes, err := os.ReadDir("/proc") // the directory ns of a process is its user's alone to list, not to go through
	if err != nil {
		return nil, err
	}
	for _, p := range processes {
		if name := p.Name(); name[0] >= '0' && name[0] <= '9' {
			candidates = append(candidates, filepath.Join("/proc", name, "ns/net"))
		}
	}
	mounts, err := os.ReadFile("/proc/self/mountinfo")
	if err != nil {
		return nil, err
	}
	for line := range strings.Lines(string(mounts)) {
		// ID PARENT MAJOR:MINOR ROOT MOUNTPOINT …, where the root of a namespace is net:[INODE]
		if fields := strings.Fields(line); len(fields) > 4 && strings.HasPrefix(fields[3], "net:[") {
			candidates = append(candidates, fields[4])
		}
	}
	for _, path := range candidates {
		if err := unix.Stat(path, &info); err != nil {
			if ended(path, err) {
				continue
			}
			return nil, fmt.Errorf("find %s: %w", path, err)
		}
		if seen[info.Ino] { // the kernel numbers all namespaces in one file system
			continue
		}
		seen[info.Ino] = true
		paths = append(paths, path)
	}
	return paths, nil
}

// ended tells whether an error with the namespace at path comes of its end, or of its process's, and its devices' with it.
func ended(path string, err error) bool {
	if errors.Is(explain(err), ErrNoNetns) || errors.Is(err, unix.ESRCH) || errors.Is(err, unix.ENODEV) {
		return true
	}
	process, ok := strings.CutSuffix(path, "/ns/net")
	if !ok {
		return false
	}
	_, err = os.Stat(process) // of one that ends at this very moment the kernel says that it is not allowed
	return errors.Is(err, os.ErrNotExist)
}
