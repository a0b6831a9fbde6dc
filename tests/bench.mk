# The test bench: included by the root Makefile.
.PHONY: engines kernels shell check-fakehost check-vm

engines: ## install what the test bench needs: packages, Docker engines, Compose
	tests/tools/install --all

kernels: ## install QEMU and the kernels that a virtual machine runs
	tests/tools/install --vm

shell: build engines ## an interactive shell in a fake host, with Docker and mustang
	tests/fakehost shell

check-fakehost: engines ## check the fake host itself, on both engines
	tests/tools/check-fakehost

check-vm: kernels ## check the virtual machine itself, with every kernel
	tests/vm/check
