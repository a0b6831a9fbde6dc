// SPDX-License-Identifier: Apache-2.0

package link

import (
	"errors"
	"fmt"
	"strings"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
)

// filterHandle marks our filters ("mst").
const filterHandle = 0x6d7374

// Filter is a program and its file descriptor; the zero value is none.
type Filter struct {
	Name string
	FD   int
}

// AttachClsact attaches programs as direct-action filters of a device: the way for kernels without TCX.
// Attaching again puts the programs in the place of those before. DetachClsact, or the device's removal or
// move into another namespace, undoes it.
func (Host) AttachClsact(name string, ingress, egress Filter) error {
	l, err := netlink.LinkByName(name)
	if err != nil {
		return fmt.Errorf("find the device %s: %w", name, err)
	}
	if err := netlink.QdiscReplace(clsact(l)); err != nil {
		return fmt.Errorf("add the clsact qdisc to %s: %w", name, err)
	}
	for parent, f := range map[uint32]Filter{netlink.HANDLE_MIN_INGRESS: ingress, netlink.HANDLE_MIN_EGRESS: egress} {
		if f.Name == "" {
			continue
		}
		filter := &netlink.BpfFilter{
			FilterAttrs: netlink.FilterAttrs{
				LinkIndex: l.Attrs().Index, Parent: parent,
				Handle: filterHandle, Priority: 1, Protocol: unix.ETH_P_ALL,
			},
			Fd: f.FD, Name: f.Name, DirectAction: true,
		}
		if err := netlink.FilterReplace(filter); err != nil {
			return fmt.Errorf("attach %s to %s: %w", f.Name, name, err)
		}
	}
	return nil
}

// DetachClsact undoes AttachClsact; filters of others stay, and the qdisc with them. A device that is
// missing, or has no filters of ours, is no error.
func (Host) DetachClsact(name string) error {
	l, err := netlink.LinkByName(name)
	if isNotFound(err) {
		return nil
	}
	if err != nil {
		return fmt.Errorf("find the device %s: %w", name, err)
	}
	ours, others := false, false
	for _, parent := range []uint32{netlink.HANDLE_MIN_INGRESS, netlink.HANDLE_MIN_EGRESS} {
		filters, err := filtersOf(l, parent)
		if err != nil {
			return fmt.Errorf("list the filters of %s: %w", name, err)
		}
		for _, f := range filters {
			if f.Attrs().Handle != filterHandle {
				others = true
				continue
			}
			ours = true
			if err := netlink.FilterDel(f); err != nil && !errors.Is(err, unix.ENOENT) {
				return fmt.Errorf("detach a program from %s: %w", name, err)
			}
		}
	}
	if !ours || others {
		return nil
	}
	if err := netlink.QdiscDel(clsact(l)); err != nil && !errors.Is(err, unix.ENOENT) && !errors.Is(err, unix.EINVAL) {
		return fmt.Errorf("remove the clsact qdisc of %s: %w", name, err)
	}
	return nil
}

func clsact(l netlink.Link) netlink.Qdisc {
	return &netlink.Clsact{QdiscAttrs: netlink.QdiscAttrs{
		LinkIndex: l.Attrs().Index,
		Handle:    netlink.MakeHandle(0xffff, 0),
		Parent:    netlink.HANDLE_CLSACT,
	}}
}

// filtersOf lists the filters below a parent; a device without the qdisc has none.
func filtersOf(l netlink.Link, parent uint32) ([]netlink.Filter, error) {
	filters, err := whole(func() ([]netlink.Filter, error) { return netlink.FilterList(l, parent) })
	if errors.Is(err, unix.EINVAL) || errors.Is(err, unix.ENOENT) {
		return nil, nil
	}
	return filters, err
}

// HasClsact tells whether an operator attached an lxc program to the device with a tc filter of his own.
func (Host) HasClsact(name string) bool {
	l, err := netlink.LinkByName(name)
	if err != nil {
		return false
	}
	filters, err := filtersOf(l, netlink.HANDLE_MIN_INGRESS)
	if err != nil {
		return false
	}
	for _, f := range filters {
		if b, ok := f.(*netlink.BpfFilter); ok && b.Handle != filterHandle && (strings.Contains(b.Name, "lxc_") || strings.Contains(b.Name, "lxc-")) {
			return true
		}
	}
	return false
}
