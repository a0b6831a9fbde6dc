// SPDX-License-Identifier: Apache-2.0

package bpf

import (
	"bufio"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"github.com/cilium/ebpf"
	"github.com/cilium/ebpf/link"
	"golang.org/x/sys/unix"
)

// sockHooks are the hooks at the root of the cgroup2 tree, by program.
var sockHooks = map[string]ebpf.AttachType{
	"sock_connect4":     ebpf.AttachCGroupInet4Connect,
	"sock_connect6":     ebpf.AttachCGroupInet6Connect,
	"sock_sendmsg4":     ebpf.AttachCGroupUDP4Sendmsg,
	"sock_sendmsg6":     ebpf.AttachCGroupUDP6Sendmsg,
	"sock_recvmsg4":     ebpf.AttachCGroupUDP4Recvmsg,
	"sock_recvmsg6":     ebpf.AttachCGroupUDP6Recvmsg,
	"sock_getpeername4": ebpf.AttachCgroupInet4GetPeername,
	"sock_getpeername6": ebpf.AttachCgroupInet6GetPeername,
	"sock_bind4":        ebpf.AttachCGroupInet4Bind,
	"sock_bind6":        ebpf.AttachCGroupInet6Bind,
	"sock_ops":          ebpf.AttachCGroupSockOps,
}

// CgroupRoot finds where the unified cgroup tree is mounted, on unified and hybrid hosts.
func CgroupRoot() (string, error) {
	f, err := os.Open("/proc/self/mountinfo")
	if err != nil {
		return "", fmt.Errorf("find the cgroup2 tree: %w", err)
	}
	defer f.Close()
	lines := bufio.NewScanner(f)
	for lines.Scan() {
		// 30 23 0:26 / /sys/fs/cgroup rw,nosuid shared:4 - cgroup2 cgroup2 rw
		before, after, ok := strings.Cut(lines.Text(), " - ")
		fields := strings.Fields(before)
		if ok && strings.HasPrefix(after, "cgroup2 ") && len(fields) > 4 && fields[3] == "/" && isCgroup2(fields[4]) {
			return fields[4], nil
		}
	}
	return "", errors.New("no cgroup2 tree is mounted: mount one with `mount -t cgroup2 none /sys/fs/cgroup/unified`")
}

// isCgroup2 tells whether a mount can be seen: `ip netns exec`, say, puts another /sys over it.
func isCgroup2(path string) bool {
	var fs unix.Statfs_t
	return unix.Statfs(path, &fs) == nil && fs.Type == unix.CGROUP2_SUPER_MAGIC
}

// AttachSock attaches the socket hooks to a cgroup and pins them, or puts this build's programs in
// the place of those found there.
func (d *Datapath) AttachSock(cgroup string) error {
	if err := d.Load(); err != nil {
		return err
	}
	id, err := cgroupID(cgroup)
	if err != nil {
		return err
	}
	for name, at := range sockHooks {
		prog := d.sock.Programs[name]
		pin := filepath.Join(d.dir, "mst_link_"+name)
		attach := func() (link.Link, error) {
			l, err := link.AttachCgroup(link.CgroupOptions{Path: cgroup, Attach: at, Program: prog})
			return l, explain(err)
		}
		if err := d.keepLink(pin, prog, target{cgroup: id}, attach); err != nil {
			return fmt.Errorf("attach %s to the cgroup %s: %w", name, cgroup, err)
		}
	}
	return nil
}

// End is which end of an endpoint the programs are attached to.
type End int

// On the host's end of a pair a container's traffic comes in; on a netkit pair it is judged while the
// container sends; on the device inside its sandbox it goes out. The host's own slave of a parent has what is
// sent to containers through the host, and what they send to it; a private parent has what ipvlan hands to it for want
// of a slave. A device that leads out has what comes in.
const (
	HostEnd End = iota
	NetkitEnd
	SandboxEnd
	HostSlave
	ParentEnd
	UplinkEnd
	IPUplinkEnd // without Ethernet headers
)

// lxcHooks are where the programs of an end are attached.
var lxcHooks = map[End]map[string]ebpf.AttachType{
	HostEnd:    {"lxc_ingress": ebpf.AttachTCXIngress, "lxc_egress": ebpf.AttachTCXEgress},
	NetkitEnd:  {"lxc_netkit": ebpf.AttachNetkitPeer, "lxc_egress": ebpf.AttachTCXEgress},
	SandboxEnd: {"lxc_ingress": ebpf.AttachTCXEgress, "lxc_egress": ebpf.AttachTCXIngress},
	HostSlave:  {"slave_ingress": ebpf.AttachTCXIngress, "lxc_egress": ebpf.AttachTCXEgress},
	ParentEnd:  {"slave_ingress": ebpf.AttachTCXIngress},
	UplinkEnd:  {"host_ingress": ebpf.AttachTCXIngress},

	IPUplinkEnd: {"host_ip_ingress": ebpf.AttachTCXIngress},
}

// Programs names what runs for packets that come in by the device and go out by it, "" for none.
func (e End) Programs() (ingress, egress string) {
	for name, at := range lxcHooks[e] {
		switch at {
		case ebpf.AttachTCXIngress:
			ingress = name
		case ebpf.AttachTCXEgress:
			egress = name
		}
	}
	return ingress, egress
}

// AttachLXC attaches the lxc programs to an end of an endpoint through TCX, and netkit's own hook, and pins
// the links under ifname; ifindex is looked up in the namespace of the calling thread. An error that is
// [ErrNoTCX] leaves it to the caller to use clsact filters.
func (d *Datapath) AttachLXC(ifname string, ifindex int, end End) error {
	if err := d.Load(); err != nil {
		return err
	}
	for name, at := range lxcHooks[end] {
		prog := d.program(name)
		pin := d.lxcPin(ifname, name)
		attach := func() (link.Link, error) { return attachDevice(ifindex, prog, at) }
		if err := d.keepLink(pin, prog, target{ifindex: ifindex}, attach); err != nil {
			return fmt.Errorf("attach %s to %s: %w", name, ifname, err)
		}
	}
	return nil
}

// keepLink updates the program of a pinned link, or attaches it and pins the link.
func (d *Datapath) keepLink(pin string, prog *ebpf.Program, at target, attach func() (link.Link, error)) error {
	d.linked.forget(pin)
	replaced, err := replace(pin, prog, at)
	if err != nil {
		return err
	}
	if !replaced {
		l, err := attach()
		if err != nil {
			return err
		}
		if err := pinLink(l, pin); err != nil {
			return err
		}
	}
	d.linked.note(pin)
	return nil
}

func (d *Datapath) program(name string) *ebpf.Program {
	if prog := d.lxc.Programs[name]; prog != nil {
		return prog
	}
	return d.host.Programs[name]
}

func attachDevice(ifindex int, prog *ebpf.Program, at ebpf.AttachType) (link.Link, error) {
	if at == ebpf.AttachNetkitPeer {
		l, err := link.AttachNetkit(link.NetkitOptions{Interface: ifindex, Program: prog, Attach: at})
		return l, explain(err)
	}
	l, err := link.AttachTCX(link.TCXOptions{Interface: ifindex, Program: prog, Attach: at})
	if errors.Is(err, ebpf.ErrNotSupported) {
		err = ErrNoTCX
	}
	return l, explain(err)
}

// ErrNoTCX says that the kernel has no TCX links (they came with 6.6).
var ErrNoTCX = errors.New("this kernel has no TCX links")

// RenameLXC keeps the links of a device that has another name now: the kernel takes no program twice.
func (d *Datapath) RenameLXC(from, to string) error {
	for _, name := range lxcPrograms {
		was := d.linked.forget(d.lxcPin(from, name))
		if err := os.Rename(d.lxcPin(from, name), d.lxcPin(to, name)); err != nil && !errors.Is(err, os.ErrNotExist) {
			return fmt.Errorf("keep %s on %s, which was %s: %w", name, to, from, err)
		}
		if was {
			d.linked.note(d.lxcPin(to, name))
		}
	}
	return nil
}

// lxcPrograms may all be on a device.
var lxcPrograms = []string{"lxc_ingress", "lxc_netkit", "lxc_egress", "host_ingress", "host_ip_ingress", "slave_ingress"}

// DetachLXC undoes AttachLXC; nothing attached is no error.
func (d *Datapath) DetachLXC(ifname string) error {
	for _, name := range lxcPrograms {
		d.linked.forget(d.lxcPin(ifname, name))
		if err := os.Remove(d.lxcPin(ifname, name)); err != nil && !errors.Is(err, os.ErrNotExist) {
			return fmt.Errorf("detach %s from %s: %w", name, ifname, err)
		}
	}
	return nil
}

// AttachedLXC lists the devices with links of ours, by name.
func (d *Datapath) AttachedLXC() ([]string, error) {
	pins, err := filepath.Glob(d.lxcPin("*", "*"))
	if err != nil {
		return nil, err
	}
	for i, p := range pins {
		_, ifname, _ := strings.Cut(filepath.Base(p), "-")
		pins[i] = strings.ReplaceAll(ifname, "%", ".")
	}
	slices.Sort(pins)
	return slices.Compact(pins), nil
}

// ProgramFD is the file descriptor of a program once it is loaded, for clsact filters.
func (d *Datapath) ProgramFD(name string) int { return d.program(name).FD() }

// lxcPin is mst_link_lxc_ingress-IFNAME; bpffs refuses dots, which names of VLAN devices have.
func (d *Datapath) lxcPin(ifname, program string) string {
	return filepath.Join(d.dir, "mst_link_"+program+"-"+strings.ReplaceAll(ifname, ".", "%"))
}

// target is what a link is wanted at: a cgroup or a device.
type target struct {
	cgroup  uint64
	ifindex int
}

// replace updates the program of a pinned link. A pin whose device or cgroup is gone, or that is attached
// elsewhere than wanted (a device may have been renamed), is removed.
func replace(pin string, prog *ebpf.Program, at target) (bool, error) {
	l, err := link.LoadPinnedLink(pin, nil)
	if errors.Is(err, os.ErrNotExist) {
		return false, nil
	}
	if err != nil {
		return false, fmt.Errorf("open the pinned link %s: %w", pin, err)
	}
	defer l.Close()
	stale, err := elsewhere(l, at)
	if err != nil {
		return false, fmt.Errorf("look at the pinned link %s: %w", pin, err)
	}
	if !stale {
		err = l.Update(prog)
		stale = errors.Is(err, unix.ENOLINK) || errors.Is(err, unix.ENODEV)
	}
	if stale {
		if err := l.Unpin(); err != nil {
			return false, fmt.Errorf("remove the dead link %s: %w", pin, err)
		}
		return false, nil
	}
	if err != nil {
		return false, fmt.Errorf("update the program of %s: %w", pin, err)
	}
	return true, nil
}

// elsewhere tells whether a link is attached to another cgroup or device.
func elsewhere(l link.Link, wanted target) (bool, error) {
	info, err := l.Info()
	if err != nil {
		return false, err
	}
	if at := info.Cgroup(); at != nil {
		return at.CgroupId != wanted.cgroup, nil
	}
	at := info.TCX() // of a device that is gone it has none
	return at != nil && int(at.Ifindex) != wanted.ifindex, nil
}

// cgroupID is the kernel's id of a cgroup, which is the inode of its directory (cgroup_id, kernfs).
func cgroupID(path string) (uint64, error) {
	var st unix.Stat_t
	if err := unix.Stat(path, &st); err != nil {
		return 0, fmt.Errorf("look at the cgroup %s: %w", path, err)
	}
	return st.Ino, nil
}

func pinLink(l link.Link, pin string) error {
	defer l.Close()
	if err := l.Pin(pin); err != nil {
		return fmt.Errorf("pin %s: %w", pin, err)
	}
	return nil
}
