// SPDX-License-Identifier: Apache-2.0

package errors

import (
	"net/netip"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/mustang-net/mustang/api"
	"github.com/mustang-net/mustang/bpf"
	"github.com/mustang-net/mustang/config"
	"github.com/mustang-net/mustang/driver"
	"github.com/mustang-net/mustang/ipam"
	"github.com/mustang-net/mustang/service"
	"github.com/mustang-net/mustang/state"
)

// mistake is something that a user may say, and what he is told.
type mistake struct {
	input string // fields of a call are apart by blanks
	want  string // in the text
}

// noMaps is a datapath without anything in it.
type noMaps struct{}

func (noMaps) Services() ([]bpf.Service, error) { return nil, nil }
func (noMaps) Backends() ([]bpf.Backend, error) { return nil, nil }
func (noMaps) PutService(bpf.Service) error     { return nil }
func (noMaps) DeleteService(bpf.Frontend) error { return nil }
func (noMaps) PutBackend(bpf.Backend) error     { return nil }
func (noMaps) DeleteBackend(uint32) error       { return nil }

// services has one service, tcp:10.96.0.100:80 called db with the backend 192.168.10.10:80, a network and its endpoint.
func services(t *testing.T) *service.Manager {
	m, err := service.New(state.Memory(), noMaps{}, service.Options{})
	require.NoError(t, err)
	spec, err := specOf("tcp:10.96.0.100:80 192.168.10.10:80 db")
	require.NoError(t, err)
	_, err = m.Add(spec)
	require.NoError(t, err)
	_, err = m.AddNetwork(service.Network{ID: "n1", Number: 1, Name: "shop", IPv4: true, VIP: true})
	require.NoError(t, err)
	require.NoError(t, m.PutEndpoint(service.Endpoint{ID: "e1", Network: "n1", IPv4: netip.MustParseAddr("10.201.0.2")}))
	return m
}

// specOf reads PROTOCOL:FRONTEND BACKEND[,BACKEND] [NAME].
func specOf(text string) (spec service.Spec, err error) {
	fields := strings.Fields(text)
	protocol, frontend, _ := strings.Cut(fields[0], ":")
	at, err := netip.ParseAddrPort(frontend)
	if err != nil {
		return spec, err
	}
	p, err := bpf.ParseProtocol(protocol)
	spec.Frontend = bpf.Frontend{Addr: at.Addr(), Port: at.Port(), Protocol: p}
	for b := range strings.SplitSeq(fields[1], ",") {
		parsed, err := api.ParseBackend(b)
		if err != nil {
			return spec, err
		}
		target, err := api.ParseTarget(parsed.Address)
		if err != nil {
			return spec, err
		}
		spec.Backends = append(spec.Backends, service.Target{Addr: target, Weight: parsed.Weight})
	}
	if len(fields) > 2 {
		spec.Name = fields[2]
	}
	return spec, err
}

// asks are the ways in which users speak to mustang.
var asks = map[string]struct {
	try      func(t *testing.T, input string) error
	mistakes []mistake
}{
	"network option": {
		func(_ *testing.T, input string) error {
			options := map[string]string{}
			for pair := range strings.FieldsSeq(input) {
				key, value, _ := strings.Cut(pair, "=")
				options[key] = value
			}
			_, err := driver.ParseOptions(options)
			return err
		},
		[]mistake{
			{"mod=veth", `unknown network option "mod": the options are `},
			{"mode=vlan", `network option mode="vlan": choose one of veth, `},
			{"mtu=1 mode=veth", `network option mtu="1" must be a number of bytes from `},
			{"mtu=1400 com.docker.network.driver.mtu=1500", "contradicts the other MTU option, which says 1"},
			{"parent=eth0 mode=veth", `network option parent="eth0" contradicts mode="veth": it goes with mode=macvlan or ipvlan only`},
			{"mode=macvlan parent=a/b", "must be a device name of 1 to 15 characters without blanks, colons and slashes"},
			{"ebpf=off lb=packet", `network option lb="packet" contradicts ebpf="off": without eBPF nftables translates services, leave lb away`},
			{"ebpf=off publish=ebpf", `network option publish="ebpf" contradicts ebpf="off": leave it away, and docker_gwbridge publishes`},
			{"publish=off publish_sources=10.0.0.0/8", `network option publish_sources contradicts publish="off": it goes with publish=ebpf only`},
			{"publish_sources=ten", `network option publish_sources="ten" must be subnets, such as 192.168.1.0/24,2001:db8::/64`},
			{"com.docker.network.bridge.host_binding_ipv4=::1", "must be an IPv4 address of the host, such as 127.0.0.1"},
		},
	},
	"subnet": { // POOL [SUBPOOL]
		func(t *testing.T, input string) error {
			i, err := ipam.New(state.Memory(), ipam.Options{
				Reserved:   []netip.Prefix{netip.MustParsePrefix("10.96.0.0/16")},
				HostRoutes: func() ([]netip.Prefix, error) { return []netip.Prefix{netip.MustParsePrefix("192.0.2.0/24")}, nil },
			})
			require.NoError(t, err)
			_, err = i.RequestPool(ipam.Request{Pool: "10.77.0.0/24"})
			require.NoError(t, err)
			fields := strings.Fields(input + " ")
			r := ipam.Request{Pool: fields[0]}
			if len(fields) > 1 {
				r.SubPool = fields[1]
			}
			if fields[0] == "-" {
				r = ipam.Request{SubPool: fields[1]}
			}
			_, err = i.RequestPool(r)
			return err
		},
		[]mistake{
			{"10.77.0", `"10.77.0": invalid request: want address/bits, for example 10.20.0.0/24`},
			{"10.77.0.1/24", "10.77.0.1/24: invalid request: it has host bits set, did you mean 10.77.0.0/24?"},
			{"10.77.0.128/25", "pools must not overlap: choose another subnet, or remove the network that has it"},
			{"10.96.7.0/24", "pool 10.96.7.0/24 overlaps the service pool 10.96.0.0/16: pools must not overlap: choose another subnet, or another service pool in mustang's configuration"},
			{"192.0.2.0/25", "pool 192.0.2.0/25 overlaps the host's route to 192.0.2.0/24: pools must not overlap: choose another subnet, or remove the route"},
			{"fd00::/64", "its family is not the one asked for: give a subnet of that family"},
			{"127.0.0.0/24", "no interface can have an address of 127.0.0.0/8: choose another"},
			{"10.78.0.0/24 10.79.0.0/25", "it is not inside its pool 10.78.0.0/24: choose an --ip-range in it"},
			{"- 10.79.0.0/25", "a sub-pool needs its pool, give the subnet too"},
		},
	},
	"address": {
		func(t *testing.T, input string) error {
			i, err := ipam.New(state.Memory(), ipam.Options{})
			require.NoError(t, err)
			p, err := i.RequestPool(ipam.Request{Pool: "10.77.0.0/29"})
			require.NoError(t, err)
			_, err = i.RequestAddress(p.ID, netip.MustParseAddr("10.77.0.2"), ipam.AddressOptions{Owner: "one"})
			require.NoError(t, err)
			if input == "many" {
				for err == nil {
					_, err = i.RequestAddress(p.ID, netip.Addr{}, ipam.AddressOptions{})
				}
				return err
			}
			_, err = i.RequestAddress(p.ID, netip.MustParseAddr(input), ipam.AddressOptions{Owner: "two"})
			return err
		},
		[]mistake{
			{"10.77.0.2", "choose another address, or end what has it"},
			{"10.77.0.9", "address 10.77.0.9: invalid request: it is outside the subnet 10.77.0.0/29: choose one in it"},
			{"10.77.0.7", "it is the network, broadcast or anycast address of 10.77.0.0/29: choose another"},
			{"many", "remove unused containers, or use a network with a larger subnet"},
		},
	},
	"service": { // see specOf
		func(t *testing.T, input string) error {
			spec, err := specOf(input)
			if err != nil {
				return err
			}
			_, err = services(t).Add(spec)
			return err
		},
		[]mistake{
			{"tcp:10.96.0.100:80 10.1.1.1:80", "service tcp:10.96.0.100:80 exists already, with id 1: remove it first, or use `mustang svc apply`"},
			{"tcp:10.96.0.101:80 10.1.1.1:80 db", `name "db" belongs to service 1: choose another`},
			{"tcp:10.96.0.101:80 10.1.1.1:80,10.1.1.1:80", "backend 10.1.1.1:80 is named twice: give it a weight instead"},
			{"tcp:10.96.0.101:80 10.96.0.100:80", "backend 10.96.0.100:80 is a VIP: name the backends behind it"},
			{"tcp:10.96.0.101:80 [fd00::1]:80", "it is of another family than the frontend: make a frontend for each family"},
			{"tcp:10.96.0.101:0 10.1.1.1:80", "port 0 stands for every port of every protocol: leave tcp out, or give a port"},
			{"any:10.96.0.101:0 10.1.1.1:80", "a frontend without a port maps ports one to one: leave the backend's port out, or give the frontend one"},
			{"tcp:127.0.0.1:80 10.1.1.1:80", "127.0.0.1 cannot be a VIP: it is a loopback address: choose an address of "},
			{"tcp:10.201.0.2:80 10.1.1.1:80", "10.201.0.2 cannot be a VIP: it is the address of an endpoint: choose an address of "},
			{"tcp:192.168.10.10:80 10.1.1.1:80", "192.168.10.10 cannot be a VIP: it is a backend of service 1: choose another address"},
			{"tcp:10.97.0.1:80 10.1.1.1:80", "10.97.0.1 cannot be a VIP: it is outside "},
			{"tcp:10.96.1.7:80 10.1.1.1:80", "10.96.1.7 cannot be a VIP by hand: "},
			{"tcp:10.96.0.101:80 10.1.1.1:80 7", `name "7" would be read as an id: use at least one letter`},
			{"tcp:10.96.0.101:80 10.1.1.1:80 10.1.1.1", `name "10.1.1.1" would be read as an address: use another`},
			{"tcp:10.96.0.101:80 10.1.1.1:80 a/b", `name "a/b": use at most 253 letters, digits, dots, dashes and underscores`},
			{"sctp:10.96.0.101:80 10.1.1.1:80", `protocol "sctp" is not supported: use tcp, udp or any`},
		},
	},
	"reference to a service": {
		func(t *testing.T, input string) error { return services(t).Remove(input) },
		[]mistake{
			{"nobody", `service "nobody": not found`},
		},
	},
	"target": { // as --service and --backend have them
		func(_ *testing.T, input string) error { _, err := api.ParseBackend(input); return err },
		[]mistake{
			{"[fd00::1", `"[fd00::1" lacks the closing bracket: write [ADDR]:PORT`},
			{"[fd00::1]80", `has "80" after the bracket: write [ADDR]:PORT`},
			{"fd00::1:80", "put an IPv6 address in brackets: [ADDR]:PORT"},
			{"web:80", `"web:80" is no ADDR:PORT: "web" is no IP address, give one such as 10.96.0.100:80`},
			{"10.1.1.1:0", `has port "0": choose 1 to 65535, or leave it out for every port`},
			{"10.1.1.1:80@0", `has weight "0": choose 1 to 100`},
		},
	},
	"frontend": {
		func(_ *testing.T, input string) error { _, err := api.ParseFrontend(input, ""); return err },
		[]mistake{
			{"224.0.0.1:80", "frontend address 224.0.0.1 cannot be a virtual IP: choose a unicast address, neither loopback nor link-local"},
		},
	},
	"service name": {
		func(_ *testing.T, input string) error { return api.CheckName(input) },
		[]mistake{
			{"-", `service name "-": use 1 to 253 letters, digits, "-", "_" and ".", with a letter or digit at both ends`},
			{"7", `service name "7" reads as an id or an address: choose one with letters`},
		},
	},
	"configuration": {
		func(t *testing.T, input string) error {
			path := filepath.Join(t.TempDir(), "mustang.toml")
			require.NoError(t, os.WriteFile(path, []byte(input), 0o600))
			_, err := config.Load(path, func(string) string { return "" })
			return err
		},
		[]mistake{
			{`sokcet = "/x"`, "unknown key sokcet: choose among state_dir, socket"},
			{`socket = "m.sock"`, `socket = "m.sock" (`},
			{`socket = "m.sock"`, "must be an absolute path"},
			{`log_level = "loud"`, `log_level = "loud" (`},
			{`service_pools = []`, "name at least one prefix"},
			{`service_pools = ["10.96.0.0"]`, "must be a prefix such as 10.96.0.0/16 or fd00:1::/96"},
			{`service_pools = ["10.96.0.1/16"]`, "has host bits set: the prefix is 10.96.0.0/16"},
			{`service_pools = ["127.0.0.0/8"]`, "must be unicast addresses, neither loopback nor link-local"},
			{`service_pools = ["10.201.0.0/16"]`, "overlaps the pool 10.201.0.0/16: choose another"},
			{`address_pools = []`, "name at least one pool with its block size"},
			{`address_pools = [{ pool = "10.9.0.0/16", size = 31 }]`, "size = 31: choose 16 to 30"},
			{`uplinks = ["a/b"]`, "a device name of 1 to 15 characters without blanks, colons and slashes"},
			{`metrics = "0.0.0.0:9464"`, "must be a loopback address, such as 127.0.0.1:9464, or the path of a unix socket: the metrics name every service"},
			{`metrics = "9464"`, "must be a loopback address with a port"},
		},
	},
}

// Each mistake is answered with the text that names it and says what to do.
func TestMistakes(t *testing.T) {
	for what, ask := range asks {
		for _, m := range ask.mistakes {
			t.Run(what+"/"+m.input, func(t *testing.T) {
				assert.ErrorContains(t, ask.try(t, m.input), m.want)
			})
		}
	}
}
