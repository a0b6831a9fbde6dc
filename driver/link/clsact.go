// SPDX-License-Identifier: Apache-2.0

package link

import (
	"fmt"
	"strings"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
)

// AttachClsact attaches two programs, by file descriptor, as direct-action filters of a device: the way
// for kernels without TCX. The device's removal undoes it.
func (Host) AttachClsact(name string, ingress, egress int) error {
	l, err := netlink.LinkByName(name)
	if err != nil {
		return fmt.Errorf("find the device %s: %w", name, err)
	}
	qdisc := &netlink.Clsact{QdiscAttrs: netlink.QdiscAttrs{
		LinkIndex: l.Attrs().Index,
		Handle:    netlink.MakeHandle(0xffff, 0),
		Parent:    netlink.HANDLE_CLSACT,
	}}
	if err := netlink.QdiscReplace(qdisc); err != nil {
		return fmt.Errorf("add the clsact qdisc to %s: %w", name, err)
	}
	for _, f := range []struct {
		parent uint32
		name   string
		fd     int
	}{{netlink.HANDLE_MIN_INGRESS, "lxc_ingress", ingress}, {netlink.HANDLE_MIN_EGRESS, "lxc_egress", egress}} {
		filter := &netlink.BpfFilter{
			FilterAttrs: netlink.FilterAttrs{
				LinkIndex: l.Attrs().Index, Parent: f.parent, Handle: 1, Priority: 1, Protocol: unix.ETH_P_ALL,
			},
			Fd: f.fd, Name: f.name, DirectAction: true,
		}
		if err := netlink.FilterReplace(filter); err != nil {
			return fmt.Errorf("attach %s to %s: %w", f.name, name, err)
		}
	}
	return nil
}

// HasClsact tells whether an lxc program is attached to the device by a filter, ours or one that an
// operator put there with tc.
func (Host) HasClsact(name string) bool {
	l, err := netlink.LinkByName(name)
	if err != nil {
		return false
	}
	filters, err := netlink.FilterList(l, netlink.HANDLE_MIN_INGRESS)
	if err != nil {
		return false
	}
	for _, f := range filters {
		if b, ok := f.(*netlink.BpfFilter); ok && (strings.Contains(b.Name, "lxc_") || strings.Contains(b.Name, "lxc-")) {
			return true
		}
	}
	return false
}
