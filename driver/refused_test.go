// SPDX-License-Identifier: Apache-2.0

package driver

import (
	"net/netip"
	"testing"

	"github.com/google/go-cmp/cmp"
	"github.com/stretchr/testify/require"
)

func TestOptionsOfANetwork(t *testing.T) {
	defaults := Options{Mode: "veth", LB: "auto", VIP: true, Publish: "ebpf"}
	with := func(change func(*Options)) Options {
		o := defaults
		change(&o)
		return o
	}
	const mtu = "com.docker.network.driver.mtu"
	for _, tt := range []struct {
		name string
		raw  map[string]string
		want Options
		err  string
	}{
		{name: "none", want: defaults},
		{name: "mode", raw: map[string]string{"mode": "veth"}, want: defaults},
		{name: "mode of another day", raw: map[string]string{"mode": "overlay"}, err: `network option mode="overlay": choose one of veth, bridge, macvlan, ipvlan, netkit`},
		{name: "packets only", raw: map[string]string{"lb": "packet"}, want: with(func(o *Options) { o.LB = LBPacket })},
		{name: "unknown balancing", raw: map[string]string{"lb": "dns"}, err: `network option lb="dns": choose one of auto, socket, packet`},
		{name: "no VIPs", raw: map[string]string{"vip": "off"}, want: with(func(o *Options) { o.VIP = false })},
		{name: "VIPs perhaps", raw: map[string]string{"vip": "true"}, err: `network option vip="true": choose one of on, off`},
		{name: "empty value", raw: map[string]string{"vip": ""}, err: `network option vip="": choose one of on, off`},
		{name: "publishing by the kernel", raw: map[string]string{"publish": "kernel"}, err: `network option publish="kernel": choose one of ebpf, gwbridge, off`},
		{name: "publishing without eBPF", raw: map[string]string{"publish": "ebpf", "ebpf": "off"}, err: `network option publish="ebpf" contradicts ebpf="off": leave it away, and docker_gwbridge publishes`},
		{name: "sources of what the engine publishes", raw: map[string]string{"publish": "gwbridge", "publish_sources": "10.0.0.0/8"}, err: `network option publish_sources contradicts publish="gwbridge": it goes with publish=ebpf only`},
		{name: "sources that are no subnets", raw: map[string]string{"publish_sources": "10.0.0.0"}, err: `network option publish_sources="10.0.0.0" must be subnets, such as 192.168.1.0/24,2001:db8::/64`},
		{name: "a binding that is no address", raw: map[string]string{"com.docker.network.bridge.host_binding_ipv4": "::1"}, err: `network option com.docker.network.bridge.host_binding_ipv4="::1" must be an IPv4 address of the host, such as 127.0.0.1`},
		{name: "MTU", raw: map[string]string{"mtu": "1400"}, want: with(func(o *Options) { o.MTU = 1400 })},
		{name: "MTU by Docker's key", raw: map[string]string{mtu: "9000"}, want: with(func(o *Options) { o.MTU = 9000 })},
		{name: "the same MTU by both", raw: map[string]string{mtu: "1280", "mtu": "1280"}, want: with(func(o *Options) { o.MTU = 1280 })},
		{name: "two MTUs", raw: map[string]string{mtu: "1280", "mtu": "1500"}, err: `network option mtu="1500" contradicts the other MTU option, which says 1280: leave one of them away`},
		{name: "MTU too small for IPv6", raw: map[string]string{"mtu": "1279"}, err: `network option mtu="1279" must be a number of bytes from 1280 to 65535`},
		{name: "MTU too large", raw: map[string]string{"mtu": "65536"}, err: `network option mtu="65536" must be a number of bytes from 1280 to 65535`},
		{name: "MTU in words", raw: map[string]string{mtu: "jumbo"}, err: `network option com.docker.network.driver.mtu="jumbo" must be a number of bytes from 1280 to 65535`},
		{name: "isolated slaves", raw: map[string]string{"mode": "macvlan", "com.docker.network.bridge.gateway_mode_ipv4": "isolated"},
			err: `gateway mode "isolated" contradicts mode="macvlan": it goes with mode=veth, bridge or netkit only`},
		{name: "isolated without eBPF", raw: map[string]string{"ebpf": "off", "com.docker.network.bridge.gateway_mode_ipv6": "isolated"},
			err: `gateway mode "isolated" contradicts ebpf="off": our programs isolate, leave ebpf away`},
		{name: "unknown key", raw: map[string]string{"colour": "red"},
			err: `unknown network option "colour": the options are com.docker.network.bridge.enable_ip_masquerade, com.docker.network.bridge.gateway_mode_ipv4, com.docker.network.bridge.gateway_mode_ipv6, com.docker.network.bridge.host_binding_ipv4, com.docker.network.bridge.name, com.docker.network.driver.mtu, ebpf, ipvlan_flag, ipvlan_mode, lb, macvlan_mode, mode, mtu, parent, publish, publish_sources, vip`},
		{name: "a parent without slaves", raw: map[string]string{"parent": "eth0"},
			err: `network option parent="eth0" contradicts mode="veth": it goes with mode=macvlan or ipvlan only`},
		{name: "a mode of slaves without slaves", raw: map[string]string{"mode": "bridge", "macvlan_mode": "vepa"},
			err: `network option macvlan_mode="vepa" contradicts mode="bridge": it goes with mode=macvlan only`},
		{name: "a bridge without a bridge", raw: map[string]string{"com.docker.network.bridge.name": "br7"},
			err: `network option com.docker.network.bridge.name="br7" contradicts mode="veth": it goes with mode=bridge only`},
		{name: "a parent that is no name", raw: map[string]string{"mode": "macvlan", "parent": "a/b"},
			err: `network option parent="a/b" must be a device name of 1 to 15 characters without blanks, colons and slashes`},
	} {
		t.Run(tt.name, func(t *testing.T) {
			got, err := ParseOptions(tt.raw)
			if tt.err != "" {
				require.EqualError(t, err, tt.err)
				w := newWorld(t)
				empty := w.lines()
				require.EqualError(t, w.CreateNetwork(ctx, network(net1, 1, tt.raw)), tt.err)
				require.Empty(t, cmp.Diff(empty, w.lines()))
				return
			}
			require.NoError(t, err)
			require.Equal(t, tt.want, got)
		})
	}
}

func TestNetworksThatAreRefused(t *testing.T) {
	four := func(pools ...string) NetworkConfig {
		c := NetworkConfig{ID: net2}
		for _, p := range pools {
			c.IPv4 = append(c.IPv4, subnet(p))
		}
		return c
	}
	for name, tt := range map[string]struct {
		cfg NetworkConfig
		err string
	}{
		"no subnet":             {four(), `create network "net2": it needs an id and at least one subnet`},
		"no id":                 {NetworkConfig{IPv4: []Subnet{subnet("10.9.0.0/24")}}, `create network "": it needs an id and at least one subnet`},
		"inside another":        {four("10.1.0.128/25"), "subnet 10.1.0.128/25 overlaps 10.1.0.0/24 of the network net1: choose another subnet"},
		"around another":        {four("10.0.0.0/8"), "subnet 10.0.0.0/8 overlaps the service pool 10.96.0.0/16: choose another subnet"},
		"its second subnet":     {four("10.9.0.0/24", "10.1.0.0/24"), "subnet 10.1.0.0/24 overlaps 10.1.0.0/24 of the network net1: choose another subnet"},
		"within itself":         {four("10.9.0.0/24", "10.9.0.0/25"), "subnet 10.9.0.0/25 overlaps 10.9.0.0/24 of the same network: choose another subnet"},
		"IPv6 inside another":   {NetworkConfig{ID: net2, IPv6: []Subnet{subnet("fd00:1::/80")}}, "subnet fd00:1::/80 overlaps fd00:1::/64 of the network net1: choose another subnet"},
		"among the virtual IPs": {four("10.96.7.0/24"), "subnet 10.96.7.0/24 overlaps the service pool 10.96.0.0/16: choose another subnet"},
	} {
		t.Run(name, func(t *testing.T) {
			w := newWorld(t)
			w.createNetwork(net1, 1)
			before := w.lines()
			require.EqualError(t, w.CreateNetwork(ctx, tt.cfg), tt.err)
			require.Empty(t, cmp.Diff(before, w.lines()))
		})
	}
}

func TestEndpointsThatAreRefused(t *testing.T) {
	change := func(f func(*EndpointConfig)) EndpointConfig {
		c := endpoint(ep2, net1, 1, 3)
		f(&c)
		return c
	}
	for name, tt := range map[string]struct {
		cfg EndpointConfig
		err string
	}{
		"unknown network":    {change(func(c *EndpointConfig) { c.NetworkID = "net9" }), "network net9: not found: remove it (docker network rm) and make it anew"},
		"short id":           {change(func(c *EndpointConfig) { c.ID = "abc" }), `create endpoint "abc": its id must have at least 11 characters`},
		"no address":         {change(func(c *EndpointConfig) { c.IPv4, c.IPv6 = netip.Prefix{}, netip.Prefix{} }), "create endpoint " + ep2 + ": it needs an address"},
		"foreign address":    {change(func(c *EndpointConfig) { c.IPv4 = netip.MustParsePrefix("10.2.0.3/24") }), "create endpoint " + ep2 + ": its address 10.2.0.3 is in none of the network's subnets [10.1.0.0/24 fd00:1::/64]"},
		"taken address":      {change(func(c *EndpointConfig) { c.IPv4 = netip.MustParsePrefix("10.1.0.2/24") }), "create endpoint " + ep2 + ": its address 10.1.0.2 belongs to the endpoint " + ep1 + ": remove that one first, or choose another address"},
		"taken IPv6 address": {change(func(c *EndpointConfig) { c.IPv6 = netip.MustParsePrefix("fd00:1::2/64") }), "create endpoint " + ep2 + ": its address fd00:1::2 belongs to the endpoint " + ep1 + ": remove that one first, or choose another address"},
		"group MAC":          {change(func(c *EndpointConfig) { c.MAC = "01:00:00:00:00:01" }), "create endpoint " + ep2 + `: "01:00:00:00:00:01" is no MAC address of an interface (six bytes, the first even)`},
		"long MAC":           {change(func(c *EndpointConfig) { c.MAC = "02:00:00:00:00:00:00:01" }), "create endpoint " + ep2 + `: "02:00:00:00:00:00:00:01" is no MAC address of an interface (six bytes, the first even)`},
		"the same beginning": {change(func(c *EndpointConfig) { c.ID = ep1[:idBytes] + "99999" }), "create endpoint e1e1e1e1e1e99999: its device msp" + ep1[:idBytes] + " belongs to the endpoint " + ep1},
		"bad name inside": {change(func(c *EndpointConfig) {
			c.Options = map[string]string{"com.docker.network.endpoint.ifname": "a/b"}
		}),
			`endpoint option com.docker.network.endpoint.ifname="a/b" must be a device name of 1 to 15 characters without blanks, colons and slashes`},
		"unknown option": {change(func(c *EndpointConfig) { c.Options = map[string]string{"mustang.vips": "on"} }),
			`unknown endpoint option "mustang.vips": the options are com.docker.network.endpoint.ifname, mustang.service, mustang.vip, mustang.health, mustang.weight, mustang.publish_sources`},
	} {
		t.Run(name, func(t *testing.T) {
			w := newWorld(t)
			w.kernel.addNetns(box)
			w.createNetwork(net1, 1)
			w.createEndpoint(ep1, net1, 1, 2)
			w.join(ep1, box)
			before := w.lines()
			_, err := w.CreateEndpoint(ctx, tt.cfg)
			require.EqualError(t, err, tt.err)
			require.Empty(t, cmp.Diff(before, w.lines()))
		})
	}
}

func TestAnEndpointThatTheEngineForgotMakesRoom(t *testing.T) {
	w := newWorld(t)
	w.kernel.addNetns(box)
	w.createNetwork(net1, 1)
	before := w.lines()
	w.createEndpoint(ep1, net1, 1, 2)
	w.join(ep1, box)
	w.kernel.removeNetns(box)
	w.createEndpoint(ep2, net1, 1, 2)
	require.Len(t, w.Endpoints(), 1)
	w.remove(ep2)
	w.kernel.addNetns(box)
	require.Empty(t, cmp.Diff(before, w.lines()))
}

func TestAForeignDeviceOfTheSameNameIsLeftAlone(t *testing.T) {
	w := newWorld(t)
	w.createNetwork(net1, 1)
	w.kernel.addForeign(if1)
	before := w.lines()
	_, err := w.CreateEndpoint(ctx, endpoint(ep1, net1, 1, 2))
	require.ErrorContains(t, err, "a device of that name is not this endpoint's")
	require.Empty(t, cmp.Diff(before, w.lines()))
}

func TestAnAddressThatIsAVIPIsRefusedByTheServices(t *testing.T) {
	w := newWorld(t)
	w.createNetwork(net1, 1)
	before := w.lines()
	w.services.refuses = ep1
	_, err := w.CreateEndpoint(ctx, endpoint(ep1, net1, 1, 2))
	require.ErrorContains(t, err, "its address is a VIP")
	require.Empty(t, cmp.Diff(before, w.lines()))
}

func TestWhatIsUnknownIsNotFound(t *testing.T) {
	w := newWorld(t)
	_, err := w.Join(ctx, net1, ep1, box)
	require.ErrorIs(t, err, ErrNotFound)
	_, err = w.Endpoint(ctx, net1, ep1)
	require.ErrorIs(t, err, ErrNotFound)
	require.NoError(t, w.Leave(ctx, net1, ep1))
	require.NoError(t, w.DeleteEndpoint(ctx, net1, ep1))
	require.NoError(t, w.DeleteNetwork(ctx, net1))
}

func TestSubnetsOfTheHostAreRefused(t *testing.T) {
	for subnet, want := range map[string]string{
		"192.0.2.0/24":   "overlaps 192.0.2.0/24, a network that the host is on",
		"192.0.2.128/25": "overlaps 192.0.2.0/24, a network that the host is on",
		"127.0.0.0/24":   "is no range for hosts",
		"169.254.0.0/16": "is no range for hosts",
		"224.1.0.0/16":   "is no range for hosts",
	} {
		w := newWorld(t)
		err := w.CreateNetwork(ctx, NetworkConfig{ID: net1, IPv4: []Subnet{{Pool: netip.MustParsePrefix(subnet)}}})
		require.ErrorContains(t, err, want)
		require.Empty(t, w.Networks())
	}
}

func TestAnAddressOfTheHostIsNoEndpoints(t *testing.T) {
	w := newWorld(t)
	w.kernel.addForeign("lan0")
	cfg := network(net1, 1, map[string]string{"mode": "macvlan", "parent": "lan0"})
	cfg.IPv4 = []Subnet{subnet("192.0.2.0/24")}
	require.NoError(t, w.CreateNetwork(ctx, cfg))
	_, err := w.CreateEndpoint(ctx, EndpointConfig{ID: ep1, NetworkID: net1, IPv4: netip.MustParsePrefix("192.0.2.2/24")})
	require.EqualError(t, err, "create endpoint "+ep1+": its address 192.0.2.2 is the host's own: keep it out of the network's range of addresses, as with --ip-range, or --aux-address host=192.0.2.2")
	require.Empty(t, w.Endpoints())
}
