// SPDX-License-Identifier: Apache-2.0

package link

import (
	"errors"
	"fmt"
	"io/fs"
	"net"
	"net/netip"
	"os"
	"strings"

	"github.com/containernetworking/plugins/pkg/ns"
	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
)

// Do runs fn in the network namespace at path, on a thread of its own. Sockets that fn opens stay there.
func (Host) Do(path string, fn func() error) error {
	return ns.WithNetNSPath(path, func(ns.NetNS) error { return fn() })
}

// ErrNoNetns says that nothing, or something else, is where a network namespace should be.
var ErrNoNetns = errors.New("there is no such network namespace")

// ErrNoDevice says that a namespace has no device of that name.
var ErrNoDevice = errors.New("there is no such device")

// explain tells a namespace that is not there from one that cannot be entered.
func explain(err error) error {
	var missing ns.NSPathNotExistErr
	var other ns.NSPathNotNSErr
	if errors.As(err, &missing) || errors.As(err, &other) || errors.Is(err, fs.ErrNotExist) || errors.Is(err, unix.ENAMETOOLONG) || errors.Is(err, unix.ENOTDIR) {
		return ErrNoNetns
	}
	return err
}

// Cookie reads the namespace's netns cookie: unique on this boot, 0 never (SO_NETNS_COOKIE, Linux 5.14).
// An empty path means the namespace of the process. An error that is [ErrNoNetns] says that none is there.
func (h Host) Cookie(path string) (cookie uint64, err error) {
	read := func() error {
		fd, err := unix.Socket(unix.AF_INET, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC, 0)
		if err != nil {
			return err
		}
		defer unix.Close(fd)
		cookie, err = unix.GetsockoptUint64(fd, unix.SOL_SOCKET, unix.SO_NETNS_COOKIE)
		return err
	}
	if path == "" {
		err = read()
	} else {
		err = h.Do(path, read)
	}
	if err != nil {
		return 0, fmt.Errorf("read the cookie of the network namespace %q: %w", path, explain(err))
	}
	return cookie, nil
}

// Listens tells whether any TCP socket listens in the namespace, other than on a loopback address
// (where engines keep their resolver).
func (h Host) Listens(path string) (bool, error) {
	found := false
	err := h.Do(path, func() error {
		if !mayListen() {
			return nil
		}
		for _, family := range []uint8{unix.AF_INET, unix.AF_INET6} {
			sockets, err := whole(func() ([]*netlink.Socket, error) { return netlink.SocketDiagTCP(family) })
			if err != nil {
				return err
			}
			for _, s := range sockets {
				if s.State == netlink.TCP_LISTEN && !s.ID.Source.IsLoopback() {
					found = true
				}
			}
		}
		return nil
	})
	if err != nil {
		return false, fmt.Errorf("list the listeners of the network namespace %q: %w", path, explain(err))
	}
	return found, nil
}

// mayListen tells whether the namespace of the calling thread has any TCP socket. The kernel counts them, but lists them only
// by a walk through those of all namespaces.
func mayListen() bool {
	for file, count := range map[string]string{"sockstat": "TCP: inuse ", "sockstat6": "TCP6: inuse "} {
		text, err := os.ReadFile("/proc/thread-self/net/" + file)
		if err != nil {
			return true // the list tells
		}
		_, rest, _ := strings.Cut("\n"+string(text), "\n"+count)
		if fields := strings.Fields(rest); len(fields) == 0 || fields[0] != "0" {
			return true
		}
	}
	return false
}

// CheckNetns tells whether a network namespace is at path; an error that is [ErrNoNetns] says that it is not.
func (Host) CheckNetns(path string) error {
	f, err := os.Open(path)
	if err == nil {
		defer f.Close()
		err = ns.IsNSorErr(path)
	}
	if err == nil {
		var kind int
		if kind, err = unix.IoctlRetInt(int(f.Fd()), unix.NS_GET_NSTYPE); err == nil && kind != unix.CLONE_NEWNET {
			err = ErrNoNetns // but another
		}
	}
	if err = explain(err); err != nil {
		return fmt.Errorf("look for the network namespace %s: %w", path, err)
	}
	return nil
}

// Inside is a device inside a sandbox and its other end.
type Inside struct {
	Device
	Up    bool
	Peer  int // ifindex of the other end on the host; 0 if there is none
	Addrs []netip.Prefix
}

// FindInside looks at a device of the namespace at path.
func (h Host) FindInside(path, name string) (Inside, error) {
	var out Inside
	err := h.Do(path, func() error {
		l, err := netlink.LinkByName(name)
		if isNotFound(err) {
			err = ErrNoDevice
		}
		if err != nil {
			return fmt.Errorf("find the device %s: %w", name, err)
		}
		out.Device = device(l)
		out.Up = l.Attrs().Flags&net.FlagUp != 0
		if isPairType(l.Type()) {
			out.Peer = l.Attrs().ParentIndex
		}
		addrs, err := whole(func() ([]netlink.Addr, error) { return netlink.AddrList(l, netlink.FAMILY_ALL) })
		if err != nil {
			return fmt.Errorf("list the addresses of %s: %w", name, err)
		}
		for _, a := range addrs {
			if p, ok := prefixOf(a.IPNet); ok && !p.Addr().IsLinkLocalUnicast() && !p.Addr().IsLoopback() {
				out.Addrs = append(out.Addrs, p)
			}
		}
		return nil
	})
	if err != nil {
		return out, fmt.Errorf("look into the sandbox %s: %w", path, explain(err))
	}
	if out.Peer != 0 && !isPair(out.Peer, out.Index, path) {
		out.Peer = 0
	}
	return out, nil
}

// isPair tells whether the device with index outer on the host is the other end of the one with index
// inner in the namespace at path: an index alone may mean another device of another namespace.
func isPair(outer, inner int, path string) bool {
	l, err := netlink.LinkByIndex(outer)
	if err != nil || l.Attrs().ParentIndex != inner {
		return false
	}
	f, err := os.Open(path)
	if err != nil {
		return false
	}
	defer f.Close()
	id, err := netlink.GetNetNsIdByFd(int(f.Fd()))
	return err == nil && id >= 0 && id == l.Attrs().NetNsID
}

// Name returns the name of a device by ifindex.
func (Host) Name(index int) (string, error) {
	l, err := netlink.LinkByIndex(index)
	if err != nil {
		return "", fmt.Errorf("find the device with index %d: %w", index, err)
	}
	return l.Attrs().Name, nil
}
