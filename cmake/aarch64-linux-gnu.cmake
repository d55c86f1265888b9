# For 64-bit Arm with Debian's cross-compiler (g++-aarch64-linux-gnu):
#   cmake -DCMAKE_TOOLCHAIN_FILE=cmake/aarch64-linux-gnu.cmake -DCMAKE_FIND_ROOT_PATH=ROOT ...
# where ROOT has that system's Python with its headers. docs/arm.md has the whole of it.
set(CMAKE_SYSTEM_NAME Linux)
set(CMAKE_SYSTEM_PROCESSOR aarch64)
set(CMAKE_CXX_COMPILER aarch64-linux-gnu-g++)
