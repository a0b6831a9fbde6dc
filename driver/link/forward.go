// SPDX-License-Identifier: Apache-2.0

package link

import (
	"bytes"
	"errors"
	"fmt"
	"io/fs"
	"net/netip"
	"os"
	"path/filepath"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
)

const (
	sysctl4 = "/proc/sys/net/ipv4/conf"
	sysctl6 = "/proc/sys/net/ipv6/conf"
)

// ErrNoForward6 says that the host forwards no IPv6 and cannot be told to for single devices.
var ErrNoForward6 = errors.New("this host forwards no IPv6: set net.ipv6.conf.all.forwarding=1 with sysctl " +
	"(and accept_ra=2 on the uplink, if it gets its address that way)")

// Forward lets the host forward what comes in from a device; never from all.
func (Host) Forward(name string, ipv6 bool) error {
	if err := os.WriteFile(filepath.Join(sysctl4, name, "forwarding"), []byte("1"), 0); err != nil {
		return fmt.Errorf("let the host forward from %s: %w", name, err)
	}
	if !ipv6 || forwardsAll6() {
		return nil
	}
	// Linux 6.17
	if err := os.WriteFile(filepath.Join(sysctl6, name, "force_forwarding"), []byte("1"), 0); err != nil {
		return fmt.Errorf("let the host forward from %s: %w", name, ErrNoForward6)
	}
	return nil
}

// Route turns forwarding on for a device alone: without it a program is given no route for what comes in there
// (bpf_fib_lookup, BPF_FIB_LKUP_RET_FWD_DISABLED).
func (Host) Route(name string) error {
	for _, family := range []string{sysctl4, sysctl6} {
		err := os.WriteFile(filepath.Join(family, name, "forwarding"), []byte("1"), 0)
		if err != nil && !(family == sysctl6 && errors.Is(err, fs.ErrNotExist)) { // a host without IPv6
			return fmt.Errorf("look routes up for %s: %w", name, err)
		}
	}
	return nil
}

func forwardsAll6() bool {
	on, err := os.ReadFile(filepath.Join(sysctl6, "all", "forwarding"))
	return err == nil && !bytes.Equal(bytes.TrimSpace(on), []byte("0"))
}

// CanForward6 tells whether IPv6 can be forwarded between devices of ours; an error is [ErrNoForward6].
func (Host) CanForward6() error {
	if forwardsAll6() {
		return nil
	}
	if _, err := os.Stat(filepath.Join(sysctl6, "default", "force_forwarding")); err != nil {
		return ErrNoForward6
	}
	return nil
}

// RefuseInside is [Host.Refuse] in the namespace at path: who asks there for an address that nothing has is told at once.
func (h Host) RefuseInside(path string, p netip.Prefix) error {
	err := h.Do(path, func() error { return h.Refuse(p) })
	if p.Addr().Is6() && errors.Is(err, unix.EACCES) {
		return nil // IPv6 is off there, and so is any way to the address
	}
	if err != nil {
		return fmt.Errorf("in the sandbox %s: %w", path, explain(err))
	}
	return nil
}

// UnrefuseInside undoes RefuseInside. A namespace that has ended has no routes.
func (h Host) UnrefuseInside(path string, p netip.Prefix) error {
	err := explain(h.Do(path, func() error { return h.Unrefuse(p) }))
	if err != nil && !errors.Is(err, ErrNoNetns) {
		return fmt.Errorf("in the sandbox %s: %w", path, err)
	}
	return nil
}

// flows matches UDP flows that went to an address, or any, and are answered from another.
type flows struct{ to, from netip.Addr }

// MatchConntrackFlow implements [netlink.CustomConntrackFilter].
func (f flows) MatchConntrackFlow(flow *netlink.ConntrackFlow) bool {
	is := func(ip []byte, a netip.Addr) bool {
		got, ok := netip.AddrFromSlice(ip)
		return ok && got.Unmap() == a
	}
	return flow.Forward.Protocol == unix.IPPROTO_UDP && is(flow.Reverse.SrcIP, f.from) &&
		(!f.to.IsValid() || is(flow.Forward.DstIP, f.to))
}

// ForgetFlows ends the UDP flows of the namespace at path that went to an address, or to any if it is invalid, and
// are answered from another: the next datagram is looked at anew. A namespace that has ended has none.
func (h Host) ForgetFlows(path string, to, from netip.Addr) error {
	err := h.Do(path, func() error {
		family := netlink.InetFamily(netlink.FAMILY_V4)
		if from.Is6() {
			family = netlink.InetFamily(netlink.FAMILY_V6)
		}
		_, err := netlink.ConntrackDeleteFilters(netlink.ConntrackTable, family, flows{to, from})
		if errors.Is(err, fs.ErrNotExist) {
			return nil // a flow has ended by itself meanwhile
		}
		return err
	})
	if err = explain(err); err != nil && !errors.Is(err, ErrNoNetns) {
		return fmt.Errorf("end the UDP flows to %s in the sandbox %s: %w", from, path, err)
	}
	return nil
}
