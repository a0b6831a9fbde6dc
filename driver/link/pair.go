// SPDX-License-Identifier: Apache-2.0

package link

import (
	"crypto/rand"
	"errors"
	"fmt"
	"net"
	"os"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
)

// Types of pairs.
const (
	TypeVeth   = "veth"
	TypeNetkit = "netkit"
)

// Pair describes two devices, what one of which sends the other gets: the host's end and the end that an
// engine moves into a sandbox.
type Pair struct {
	Owner string // endpoint id, kept in the host end's alias
	Type  string // TypeVeth or TypeNetkit
	Host  string // device names, at most 15 bytes
	Peer  string
	MTU   int              // bytes
	MAC   net.HardwareAddr // of the peer
	Open  bool             // netkit: what the peer sends passes although no program judges it
	// Into is the path of a namespace that the peer is made in at once, with its last name: moving it there takes the
	// kernel longer than making it. "" leaves it here.
	Into string
}

// CreatePair creates a pair and returns its host's end, which is up, has no link-local address and
// forwards nothing. A pair of the same owner that is there already is taken, and finished if it is half made.
func (h Host) CreatePair(p Pair) (Device, error) {
	pair, done, err := p.link(h)
	if err != nil {
		return Device{}, fmt.Errorf("create the %s pair %s, %s: %w", p.Type, p.Host, p.Peer, err)
	}
	defer done()
	err = netlink.LinkAdd(pair)
	switch {
	case errors.Is(err, unix.EEXIST):
		if found, findErr := netlink.LinkByName(p.Host); findErr == nil && ownedBy(found, p.Owner) {
			return setUp(p)
		}
		err = fmt.Errorf("%w: a device of that name is not this endpoint's: remove or rename it", err)
	case errors.Is(err, unix.EOPNOTSUPP):
		err = missing(p.Type)
	}
	if err != nil {
		return Device{}, fmt.Errorf("create the %s pair %s, %s: %w", p.Type, p.Host, p.Peer, err)
	}
	dev, err := setUp(p)
	if err != nil {
		return Device{}, errors.Join(err, netlink.LinkDel(pair))
	}
	return dev, nil
}

// link is the pair as the kernel makes it; done lets go of the namespace that it names.
func (p Pair) link(h Host) (l netlink.Link, done func(), err error) {
	var into any
	done = func() {}
	if p.Into != "" {
		if err := h.vacant(p.Into, p.Peer); err != nil {
			return nil, nil, err
		}
		f, err := os.Open(p.Into)
		if err != nil {
			return nil, nil, explain(err)
		}
		into, done = netlink.NsFd(int(f.Fd())), func() { f.Close() }
	}
	// with a random MAC of the kernel's, systemd-udevd would soon give the device another
	attrs := netlink.LinkAttrs{Name: p.Host, MTU: p.MTU, Group: group, HardwareAddr: randomMAC()}
	if p.Type != TypeNetkit {
		return &netlink.Veth{LinkAttrs: attrs, PeerName: p.Peer, PeerHardwareAddr: p.MAC, PeerNamespace: into}, done, nil
	}
	nk := &netlink.Netkit{
		LinkAttrs: attrs, Mode: netlink.NETKIT_MODE_L2, Policy: netlink.NETKIT_POLICY_FORWARD,
		// what the sandbox sends while no program judges it goes nowhere
		PeerPolicy: netlink.NETKIT_POLICY_BLACKHOLE,
		Scrub:      netlink.NETKIT_SCRUB_DEFAULT, PeerScrub: netlink.NETKIT_SCRUB_DEFAULT,
	}
	if p.Open {
		nk.PeerPolicy = netlink.NETKIT_POLICY_FORWARD
	}
	nk.SetPeerAttrs(&netlink.LinkAttrs{Name: p.Peer, MTU: p.MTU, HardwareAddr: p.MAC, Namespace: into})
	return nk, done, nil
}

// CheckPair tells whether the kernel has a type of pair: it asks for one that no kernel makes.
func (Host) CheckPair(typ string) error {
	if typ != TypeNetkit {
		return nil
	}
	const nowhere = -1
	probe := &netlink.Netkit{LinkAttrs: netlink.LinkAttrs{Name: "mstprobe"}, Policy: nowhere}
	err := netlink.LinkAdd(probe)
	switch {
	case err == nil:
		return netlink.LinkDel(probe)
	case errors.Is(err, unix.EOPNOTSUPP):
		return missing(typ)
	case errors.Is(err, unix.EINVAL):
		return nil
	}
	return fmt.Errorf("look for %s: %w", typ, err)
}

func isPairType(typ string) bool { return typ == TypeVeth || typ == TypeNetkit }

func randomMAC() net.HardwareAddr {
	mac := make(net.HardwareAddr, 6)
	_, _ = rand.Read(mac)        // never fails (crypto/rand)
	mac[0] = mac[0]&^0x01 | 0x02 // of one device, locally administered
	return mac
}

func setUp(p Pair) (Device, error) {
	host, err := netlink.LinkByName(p.Host)
	if err != nil {
		return Device{}, fmt.Errorf("find the new device %s: %w", p.Host, err)
	}
	if err := netlink.LinkSetAlias(host, alias+p.Owner); err != nil {
		return Device{}, fmt.Errorf("mark %s as ours: %w", p.Host, err)
	}
	if err := keepOff(host); err != nil {
		return Device{}, err
	}
	if err := netlink.LinkSetUp(host); err != nil {
		return Device{}, fmt.Errorf("set %s up: %w", p.Host, err)
	}
	return device(host), nil
}
