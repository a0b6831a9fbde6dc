// SPDX-License-Identifier: Apache-2.0

package link

import (
	"net"
	"testing"

	"github.com/stretchr/testify/assert"
	"github.com/vishvananda/netlink"
)

// TestIsNIC says which devices lead out by what they are.
func TestIsNIC(t *testing.T) {
	up := netlink.LinkAttrs{Flags: net.FlagUp}
	for name, c := range map[string]struct {
		link netlink.Link
		want bool
	}{
		"a card":             {&netlink.Device{LinkAttrs: up}, true},
		"a VLAN":             {&netlink.Vlan{LinkAttrs: up}, true},
		"a bond":             {&netlink.Bond{LinkAttrs: up}, true},
		"a team":             {&netlink.GenericLink{LinkAttrs: up, LinkType: "team"}, true},
		"WireGuard":          {&netlink.Wireguard{LinkAttrs: netlink.LinkAttrs{Flags: net.FlagUp, EncapType: "none"}}, true},
		"a modem":            {&netlink.GenericLink{LinkAttrs: netlink.LinkAttrs{Flags: net.FlagUp, EncapType: "ppp"}, LinkType: "ppp"}, true},
		"a tunnel of GRE":    {&netlink.Gretun{LinkAttrs: netlink.LinkAttrs{Flags: net.FlagUp, EncapType: "gre"}}, false},
		"a card that is off": {&netlink.Device{}, false},
		"loopback":           {&netlink.Device{LinkAttrs: netlink.LinkAttrs{Flags: net.FlagUp | net.FlagLoopback}}, false},
		"a card in a bridge": {&netlink.Device{LinkAttrs: netlink.LinkAttrs{Flags: net.FlagUp, MasterIndex: 7}}, false},
		"a bridge":           {&netlink.Bridge{LinkAttrs: up}, false},
		"a veth device":      {&netlink.Veth{LinkAttrs: up}, false},
		"a macvlan":          {&netlink.Macvlan{LinkAttrs: up}, false},
		"an ipvlan":          {&netlink.IPVlan{LinkAttrs: up}, false},
		"an overlay":         {&netlink.Vxlan{LinkAttrs: up}, false},
		"a tap":              {&netlink.Tuntap{LinkAttrs: up}, false},
		"a dummy":            {&netlink.Dummy{LinkAttrs: up}, false},
	} {
		assert.Equal(t, c.want, isNIC(c.link), name)
	}
}
