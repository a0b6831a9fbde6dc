// SPDX-License-Identifier: Apache-2.0

package driver

import (
	"context"
	"fmt"
	"maps"
	"net/netip"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"github.com/stretchr/testify/require"

	"github.com/mustang-net/mustang/bpf"
	"github.com/mustang-net/mustang/driver/ports"
)

func tcp(port, host, last uint16) PortBinding {
	return PortBinding{Protocol: bpf.ProtocolTCP, Port: port, HostPort: host, HostPortEnd: last}
}

var twoPorts = []PortBinding{tcp(80, 8080, 8080), tcp(81, 8081, 8081)}

// publishing is a world with an endpoint on each of two networks, the first with an option.
func publishing(t *testing.T, option ...string) *world {
	t.Helper()
	w := newWorld(t)
	w.kernel.addUplink("eth0", "192.0.2.2")
	require.NoError(t, w.SyncUplinks())
	options := map[string]string{}
	for _, o := range option {
		key, value, _ := strings.Cut(o, "=")
		options[key] = value
	}
	require.NoError(t, w.CreateNetwork(ctx, network(net1, 1, options)))
	w.createNetwork(net2, 2)
	w.createEndpoint(ep1, net1, 1, 2)
	w.createEndpoint(ep2, net2, 2, 2)
	return w
}

// portLines are what leads to endpoints and what is held.
func (w *world) portLines() []string {
	return slices.DeleteFunc(w.lines(), func(l string) bool { return !strings.HasPrefix(l, "port ") })
}

func TestPublishedPorts(t *testing.T) {
	for _, test := range []struct {
		name   string
		option string
		want   []PortBinding
		lines  []string
	}{
		{"on every address", "mode=veth", []PortBinding{tcp(80, 8080, 8080)}, []string{
			"port 0.0.0.0:8080/tcp held via 127.0.0.1:8080", "port 0.0.0.0:8080/tcp of " + ep1 + " leads to 80",
			"port [::]:8080/tcp held via [::1]:8080", "port [::]:8080/tcp of " + ep1 + " leads to 80",
		}},
		{"on one address", "mode=veth", []PortBinding{{Protocol: bpf.ProtocolUDP, Port: 53, Host: netip.MustParseAddr("192.0.2.2"), HostPort: 53}}, []string{
			"port 192.0.2.2:53/udp held via 192.0.2.2:53", "port 192.0.2.2:53/udp of " + ep1 + " leads to 53",
		}},
		{"on the network's address", "com.docker.network.bridge.host_binding_ipv4=127.0.0.1", []PortBinding{tcp(80, 8080, 0)}, []string{
			"port 127.0.0.1:8080/tcp held via 127.0.0.1:8080", "port 127.0.0.1:8080/tcp of " + ep1 + " leads to 80",
		}},
		{"any port", "com.docker.network.bridge.host_binding_ipv4=127.0.0.1", []PortBinding{tcp(80, 0, 0)}, []string{
			"port 127.0.0.1:32768/tcp held via 127.0.0.1:32768", "port 127.0.0.1:32768/tcp of " + ep1 + " leads to 80",
		}},
		{"the first free one of a range", "com.docker.network.bridge.host_binding_ipv4=192.0.2.2", []PortBinding{tcp(80, 1000, 1002)}, []string{
			"port 192.0.2.2:1001/tcp held via 192.0.2.2:1001", "port 192.0.2.2:1001/tcp of " + ep1 + " leads to 80",
		}},
		{"a range of them", "com.docker.network.bridge.host_binding_ipv4=127.0.0.1", []PortBinding{tcp(81, 8081, 8081), tcp(80, 8080, 8080)}, []string{
			"port 127.0.0.1:8080/tcp held via 127.0.0.1:8080", "port 127.0.0.1:8080/tcp of " + ep1 + " leads to 80",
			"port 127.0.0.1:8081/tcp held via 127.0.0.1:8081", "port 127.0.0.1:8081/tcp of " + ep1 + " leads to 81",
		}},
		{"routed in one family", "com.docker.network.bridge.gateway_mode_ipv6=routed", []PortBinding{tcp(80, 8080, 8080)}, []string{
			"port 0.0.0.0:8080/tcp held via 127.0.0.1:8080", "port 0.0.0.0:8080/tcp of " + ep1 + " leads to 80",
			"port [fd00:1::2]:80/tcp of " + ep1 + " leads to 80",
		}},
		{"routed, once for all addresses of the host's", "com.docker.network.bridge.gateway_mode_ipv4=routed", []PortBinding{
			{Protocol: bpf.ProtocolTCP, Port: 80, Host: netip.MustParseAddr("127.0.0.1"), HostPort: 8080},
			{Protocol: bpf.ProtocolTCP, Port: 81, Host: netip.MustParseAddr("127.0.0.1"), HostPort: 8081},
			{Protocol: bpf.ProtocolTCP, Port: 80, Host: netip.MustParseAddr("192.0.2.2"), HostPort: 8080},
		}, []string{
			"port 10.1.0.2:80/tcp of " + ep1 + " leads to 80", "port 10.1.0.2:81/tcp of " + ep1 + " leads to 81",
		}},
		{"by nobody of ours", "publish=gwbridge", []PortBinding{tcp(80, 8080, 8080)}, []string{}},
	} {
		t.Run(test.name, func(t *testing.T) {
			w := publishing(t, test.option)
			w.ports.taken[ports.Port{Addr: netip.MustParseAddrPort("192.0.2.2:1000"), Protocol: "tcp"}] = "nginx (pid 7)"
			before := w.lines()
			for range 2 {
				require.NoError(t, w.Publish(ctx, net1, ep1, test.want))
				require.Empty(t, cmp.Diff(test.lines, w.portLines()))
			}
			w.restart()
			require.Empty(t, cmp.Diff(test.lines, w.portLines()), "after a restart")
			for range 2 {
				require.NoError(t, w.Unpublish(ctx, net1, ep1))
				require.Empty(t, cmp.Diff(before, w.lines()))
			}
			require.NoError(t, w.Publish(ctx, net1, ep1, test.want))
			require.NoError(t, w.Leave(ctx, net1, ep1))
			require.Empty(t, cmp.Diff(before, w.lines()), "an engine that was restarted sends no Revoke")
		})
	}
}

func TestPortsThatAContainerAsksForTwice(t *testing.T) {
	local := PortBinding{Protocol: bpf.ProtocolTCP, Port: 80, Host: netip.MustParseAddr("127.0.0.1"), HostPort: 8080}
	twice := "publish the port 80/tcp: the container asks for the host's port 8080 twice"
	for _, test := range []struct {
		name string
		want []PortBinding
		held int
		err  string
	}{
		{"the same", []PortBinding{tcp(80, 8080, 8080), tcp(80, 8080, 8080)}, 2, ""},
		{"the same on one address", []PortBinding{local, local}, 1, ""},
		{"on every address and on one", []PortBinding{local, tcp(80, 8080, 8080)}, 0, twice},
		{"for two of its ports", []PortBinding{tcp(79, 8080, 8080), tcp(80, 8080, 8080)}, 0, twice},
		{"of a range, the next one", []PortBinding{tcp(79, 8080, 8082), tcp(80, 8080, 8082)}, 4, ""},
		{"any two", []PortBinding{tcp(80, 0, 0), tcp(80, 0, 0)}, 4, ""},
		{"by TCP and UDP", []PortBinding{tcp(80, 8080, 8080), {Protocol: bpf.ProtocolUDP, Port: 80, HostPort: 8080}}, 4, ""},
	} {
		t.Run(test.name, func(t *testing.T) {
			w := publishing(t)
			before := w.lines()
			err := w.Publish(ctx, net1, ep1, test.want)
			require.Len(t, w.ports.held, test.held)
			if test.err != "" {
				require.ErrorContains(t, err, test.err)
				require.NotErrorIs(t, err, ports.ErrInUse, "nobody else has it")
			} else {
				require.NoError(t, err)
				require.NoError(t, w.Unpublish(ctx, net1, ep1))
			}
			require.Empty(t, cmp.Diff(before, w.lines()))
		})
	}
}

func TestPortsThatCannotBePublished(t *testing.T) {
	for _, test := range []struct {
		name, option, err string
		want              PortBinding
	}{
		{"a process of the host has it", "mode=veth", "port 0.0.0.0:80/tcp is in use by nginx (pid 7)", tcp(80, 80, 80)},
		{"a whole range is taken", "mode=veth", "every port from 80 to 80 is taken", tcp(80, 79, 80)},
		{"the host has no such address", "mode=veth", "the host has no address 198.51.100.1", PortBinding{Protocol: bpf.ProtocolTCP, Port: 80, Host: netip.MustParseAddr("198.51.100.1"), HostPort: 80}},
		{"the network publishes nothing", "publish=off", "has publish=off", tcp(80, 80, 80)},
	} {
		t.Run(test.name, func(t *testing.T) {
			w := publishing(t, test.option)
			for _, port := range []string{"0.0.0.0:79", "0.0.0.0:80", "[::]:80"} {
				w.ports.taken[ports.Port{Addr: netip.MustParseAddrPort(port), Protocol: "tcp"}] = "nginx (pid 7)"
			}
			before := w.lines()
			if test.want.HostPortEnd > test.want.HostPort {
				test.err = "every port from 79 to 80 is taken"
			}
			require.ErrorContains(t, w.Publish(ctx, net1, ep1, []PortBinding{tcp(90, 90, 90), test.want}), test.err)
			require.Empty(t, cmp.Diff(before, w.lines()), "nothing is left of the other")
		})
	}
	t.Run("nobody's endpoint", func(t *testing.T) {
		require.ErrorIs(t, publishing(t).Publish(ctx, net1, "nobody", twoPorts), ErrNotFound)
	})
}

func TestAPortStaysHeldWhileAReplicaHasIt(t *testing.T) {
	w := publishing(t)
	w.createEndpoint("e3e3e3e3e3e3e3e3", net1, 1, 3)
	require.NoError(t, w.Publish(ctx, net1, ep1, []PortBinding{tcp(80, 8080, 8080)}))
	require.NoError(t, w.Publish(ctx, net1, "e3e3e3e3e3e3e3e3", []PortBinding{tcp(80, 8080, 8080)}))
	require.NoError(t, w.Unpublish(ctx, net1, ep1))
	require.Len(t, w.ports.held, 2)
	require.NoError(t, w.Unpublish(ctx, net1, "e3e3e3e3e3e3e3e3"))
	require.Empty(t, w.ports.held)
}

// TestStrangersAreIntroduced asks the engine only where it matters, and without the lock: the engine may call meanwhile.
func TestStrangersAreIntroduced(t *testing.T) {
	w := publishing(t)
	ep3 := "e3e3e3e3e3e3e3e3"
	w.createEndpoint(ep3, net1, 1, 3)
	asked := []string{}
	w.introduce = func(_ context.Context, network string) {
		asked = append(asked, network)
		require.NoError(t, w.Unpublish(ctx, net1, "nobody"))
		w.services.known = map[string]bool{ep1: true, ep3: true}
	}
	require.NoError(t, w.Publish(ctx, net1, ep1, []PortBinding{tcp(80, 8080, 8080), tcp(81, 9000, 9000)}))
	require.NoError(t, w.Publish(ctx, net1, ep3, []PortBinding{tcp(80, 8081, 8081), tcp(81, 9000, 9010)}))
	require.Empty(t, asked, "nothing is asked of free ports and of ranges")
	require.NoError(t, w.Publish(ctx, net1, ep3, []PortBinding{tcp(80, 8080, 8080)}))
	require.Equal(t, []string{net1}, asked)
	require.ErrorContains(t, w.Publish(ctx, net2, ep2, []PortBinding{tcp(80, 8080, 8080)}), "is published by the endpoint "+ep1)
	require.Equal(t, []string{net1, net2}, asked)
	w.services.known[ep2] = true
	require.NoError(t, w.Publish(ctx, net1, ep3, []PortBinding{tcp(80, 8080, 8080), tcp(81, 9000, 9000)}))
	require.Len(t, asked, 2, "both are known")
}

// TestPortsOfAContainerOnTwoNetworks has the engine ask the wrong one first, as it does in no order.
func TestPortsOfAContainerOnTwoNetworks(t *testing.T) {
	w := publishing(t)
	off := network("ffffffffffffffff", 9, map[string]string{"publish": "off"})
	require.NoError(t, w.CreateNetwork(ctx, off))
	ep3, ep4 := "e3e3e3e3e3e3e3e3", "e4e4e4e4e4e4e4e4"
	w.createEndpoint(ep3, net1, 1, 3)
	w.createEndpoint(ep4, off.ID, 9, 2)
	want := []PortBinding{tcp(80, 8080, 8080)}
	require.NoError(t, w.Publish(ctx, net1, ep1, want))
	before := w.lines()

	require.ErrorContains(t, w.Publish(ctx, net2, ep2, want), "is published by the endpoint "+ep1, "which network it is on is not known")
	require.ErrorContains(t, w.Publish(ctx, off.ID, ep4, want), "publish=off")
	w.introduce = func(context.Context, string) {
		w.services.on = map[string][]string{ep2: {net1, net2}, ep4: {net1, off.ID}}
	}
	require.NoError(t, w.Publish(ctx, net2, ep2, want))
	require.NoError(t, w.Publish(ctx, off.ID, ep4, want))
	require.Empty(t, cmp.Diff(before, w.lines()), "nothing is published there")
	require.NoError(t, w.Publish(ctx, net1, ep3, want), "the replica's other endpoint")
}

func TestAHeldPortLeadsToTheReplicaThatIsLeft(t *testing.T) {
	w := newWorld(t)
	w.createNetwork(net1, 1)
	replicas := []string{"e3e3e3e3e3e3e3e3", "e4e4e4e4e4e4e4e4", "e5e5e5e5e5e5e5e5"}
	for i, id := range replicas {
		ep := endpoint(id, net1, 1, 3+i)
		ep.IPv6 = netip.Prefix{}
		_, err := w.CreateEndpoint(ctx, ep)
		require.NoError(t, err)
		require.NoError(t, w.Publish(ctx, net1, id, []PortBinding{{Protocol: bpf.ProtocolTCP, Port: 80, Host: netip.MustParseAddr("::1"), HostPort: 8080}}))
	}
	at := ports.Port{Addr: netip.MustParseAddrPort("[::1]:8080"), Protocol: "tcp"}
	for i, id := range replicas[:2] {
		require.NoError(t, w.Unpublish(ctx, net1, id))
		require.Equal(t, netip.AddrPortFrom(w.endpoints[replicas[i+1]].IPv4.Addr(), 80), w.ports.held[at])
	}
	require.NoError(t, w.Unpublish(ctx, net1, replicas[2]))
	require.Empty(t, w.ports.held)
}

func TestAPortAtAContainersOwnAddressIsNotTheHosts(t *testing.T) {
	w := publishing(t, "com.docker.network.bridge.gateway_mode_ipv4=routed")
	require.NoError(t, w.Publish(ctx, net1, ep1, []PortBinding{tcp(80, 8080, 8080)}))
	require.NoError(t, w.Publish(ctx, net2, ep2, []PortBinding{tcp(81, 80, 81)}))
	require.Contains(t, w.portLines(), "port 0.0.0.0:80/tcp held via 127.0.0.1:80", "the first of the range")
	require.NoError(t, w.Unpublish(ctx, net2, ep2))
	require.Len(t, w.ports.held, 1, "of the other endpoint, of IPv6")
}

func TestARangeIsOfReplicasOnTheirOwn(t *testing.T) {
	w := publishing(t)
	w.createEndpoint("e3e3e3e3e3e3e3e3", net1, 1, 3)
	for _, id := range []string{ep1, "e3e3e3e3e3e3e3e3"} {
		require.NoError(t, w.Publish(ctx, net1, id, []PortBinding{tcp(80, 8000, 8010)}))
	}
	list := w.Ports()
	require.Len(t, list, 4)
	require.Equal(t, []uint16{8000, 8000, 8001, 8001}, []uint16{list[0].Host.Port(), list[1].Host.Port(), list[2].Host.Port(), list[3].Host.Port()})
}

func TestManyPortsAreOneRecord(t *testing.T) {
	w := publishing(t)
	var want []PortBinding
	for port := uint16(20999); port >= 20000; port-- { // an engine gives no order
		want = append(want, tcp(port, port, port))
	}
	require.NoError(t, w.Publish(ctx, net1, ep1, want))
	list := w.Ports()
	require.Len(t, list, 2)
	require.EqualValues(t, 1000, list[0].Count)
	require.Len(t, w.ports.held, 2000)
	held := maps.Clone(w.ports.held)
	w.restart()
	require.Equal(t, held, w.ports.held)
	require.Equal(t, 1000, w.ports.both, "as many sockets as before")
}

func TestUplinksAreFollowed(t *testing.T) {
	w := newWorld(t)
	of := func() []string {
		return slices.DeleteFunc(w.lines(), func(l string) bool { return !strings.HasPrefix(l, "uplink") && !strings.HasPrefix(l, "programs") })
	}
	require.NoError(t, w.SyncUplinks())
	require.Empty(t, of())
	w.kernel.addUplink("eth0", "192.0.2.2")
	w.kernel.addUplink("wlan0", "192.0.2.3")
	for range 2 {
		require.NoError(t, w.SyncUplinks())
		require.Equal(t, []string{"programs of eth0 on eth0", "programs of wlan0 on wlan0", "uplink eth0 as 192.0.2.2", "uplink wlan0 as 192.0.2.3"}, of())
		require.True(t, w.datapath.endpoints[netip.MustParseAddr("192.0.2.3")].Host)
		w.restart()
	}
	w.kernel.mu.Lock()
	w.kernel.devices["lan1"] = w.kernel.devices["eth0"] // renamed
	w.kernel.devices["lan1"].sends = netip.MustParseAddr("192.0.2.4")
	delete(w.kernel.devices, "eth0")
	delete(w.kernel.devices, "wlan0")
	w.kernel.mu.Unlock()
	require.NoError(t, w.SyncUplinks())
	require.Equal(t, []string{"programs of lan1 on lan1", "uplink lan1 as 192.0.2.4"}, of())
	require.NotContains(t, w.datapath.endpoints, netip.MustParseAddr("192.0.2.2"), "it is not the host's any more")
}

func TestUplinksThatChangeNames(t *testing.T) {
	w := newWorld(t)
	w.kernel.addUplink("eth0", "192.0.2.2")
	w.kernel.addUplink("wlan0", "192.0.2.3")
	require.NoError(t, w.SyncUplinks())
	d := w.kernel.devices
	d["eth0"], d["wlan0"] = d["wlan0"], d["eth0"]
	require.NoError(t, w.SyncUplinks())
	require.Equal(t, map[string]int{"eth0": d["eth0"].index, "wlan0": d["wlan0"].index}, w.datapath.attached)
	d["lan1"], d["eth0"] = d["eth0"], d["wlan0"]
	delete(d, "wlan0")
	require.NoError(t, w.SyncUplinks())
	require.Equal(t, map[string]int{"eth0": d["eth0"].index, "lan1": d["lan1"].index}, w.datapath.attached)
}

func TestAContainerWithAGatewayForEachFamily(t *testing.T) {
	only4 := tcp(80, 8080, 8080)
	only4.IPv4Only = true
	for _, first := range []string{ep1, ep2} {
		w := publishing(t)
		w.kernel.addNetns(box)
		w.join(ep1, box)
		w.join(ep2, box)
		before := w.lines()
		asked := map[string]PortBinding{ep1: only4, ep2: tcp(80, 8080, 8080)} // an engine tells only the one for IPv4
		second := map[string]string{ep1: ep2, ep2: ep1}[first]
		for _, id := range []string{first, second} {
			require.NoError(t, w.Publish(ctx, "", id, []PortBinding{asked[id]}))
		}
		require.Empty(t, cmp.Diff([]string{
			"port 0.0.0.0:8080/tcp held via 127.0.0.1:8080", "port 0.0.0.0:8080/tcp of " + ep1 + " leads to 80",
			"port [::]:8080/tcp held via [::1]:8080", "port [::]:8080/tcp of " + ep2 + " leads to 80",
		}, w.portLines()), "%s first", first)
		require.NoError(t, w.Unpublish(ctx, "", ep1))
		require.NoError(t, w.Publish(ctx, "", ep2, []PortBinding{asked[ep2]}), "it is the only gateway now")
		require.Len(t, w.Ports(), 2)
		require.Equal(t, ep2, w.Ports()[0].Endpoint)
		require.NoError(t, w.Unpublish(ctx, "", ep2))
		require.Empty(t, cmp.Diff(before, w.lines()))
	}
}

func TestOtherPortsTakeThePlaceOfThoseBefore(t *testing.T) {
	w := publishing(t, "com.docker.network.bridge.host_binding_ipv4=127.0.0.1")
	require.NoError(t, w.Publish(ctx, net1, ep1, []PortBinding{tcp(80, 8080, 8080)}))
	require.NoError(t, w.Publish(ctx, net1, ep1, []PortBinding{tcp(80, 8081, 8081)}))
	require.Equal(t, []string{"port 127.0.0.1:8081/tcp held via 127.0.0.1:8081", "port 127.0.0.1:8081/tcp of " + ep1 + " leads to 80"}, w.portLines())
}

func TestAPortOfAFamilyThatItsEndpointLacksIsTakenAllTheSame(t *testing.T) {
	w := publishing(t)
	four := network("net4", 4, nil)
	four.IPv6 = nil
	require.NoError(t, w.CreateNetwork(ctx, four))
	cfg := endpoint("e4e4e4e4e4e4e4e4", "net4", 4, 2)
	cfg.IPv6 = netip.Prefix{}
	_, err := w.CreateEndpoint(ctx, cfg)
	require.NoError(t, err)
	require.NoError(t, w.Publish(ctx, "net4", "e4e4e4e4e4e4e4e4", []PortBinding{tcp(80, 8080, 8080)}))
	before := w.lines()
	six := tcp(80, 8080, 8080)
	six.Host = netip.IPv6Unspecified()
	require.ErrorContains(t, w.Publish(ctx, net1, ep1, []PortBinding{six}), "port 8080/tcp is published by the endpoint e4e4e4e4e4e4e4e4 already")
	require.Empty(t, cmp.Diff(before, w.lines()))
}

// Nothing of the host's own is behind a port of IPv6 whose endpoint has none: the same port of IPv4 may be anybody's.
func TestAPortOfIPv6AloneLeadsToItsEndpoint(t *testing.T) {
	w := publishing(t)
	four := network("net4", 4, nil)
	four.IPv6 = nil
	require.NoError(t, w.CreateNetwork(ctx, four))
	routed := network("net5", 5, map[string]string{"com.docker.network.bridge.gateway_mode_ipv4": "routed"})
	routed.IPv6 = nil
	require.NoError(t, w.CreateNetwork(ctx, routed))
	for i, id := range []string{"net4", "net5"} {
		cfg := endpoint(fmt.Sprintf("e%de4e4e4e4e4e4e4", i), id, 4+i, 2)
		cfg.IPv6 = netip.Prefix{}
		_, err := w.CreateEndpoint(ctx, cfg)
		require.NoError(t, err)
	}
	six := tcp(80, 8080, 8080)
	six.Host = netip.IPv6Unspecified()
	require.NoError(t, w.Publish(ctx, "net4", "e0e4e4e4e4e4e4e4", []PortBinding{six}))
	require.NoError(t, w.Publish(ctx, "net5", "e1e4e4e4e4e4e4e4", []PortBinding{tcp(80, 8081, 8081)}))
	for range 2 {
		require.Contains(t, strings.Join(w.portLines(), "\n"), "port [::]:8080/tcp held via 10.4.0.2:80")
		require.NotContains(t, strings.Join(w.portLines(), "\n"), ":8081/tcp held", "whoever wants it asks at its own address")
		w.restart()
	}
}

func TestSourcesAreKeptWhereTheDaemonPassesOn(t *testing.T) {
	lan := []netip.Prefix{netip.MustParsePrefix("192.0.2.0/24")}
	w := publishing(t, "publish_sources=192.0.2.0/24")
	require.NoError(t, w.Publish(ctx, net1, ep1, []PortBinding{tcp(80, 8080, 8080)}))
	for range 2 {
		for _, at := range []string{"0.0.0.0:8080", "[::]:8080"} {
			require.Equal(t, lan, w.ports.sources[ports.Port{Addr: netip.MustParseAddrPort(at), Protocol: "tcp"}], at)
		}
		w.restart()
	}
}
