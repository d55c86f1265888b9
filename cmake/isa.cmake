# bertrt_isa(<target> <folder> <flags...>): compiles csrc/cpu/<folder>/kernels.cpp for one instruction
# set and links it into <target>. The flags reach that one file only.
function(bertrt_isa target folder)
  add_library(bertrt_${folder} OBJECT csrc/cpu/${folder}/kernels.cpp)
  target_include_directories(bertrt_${folder} PRIVATE csrc)
  # The kernels promise the same bits on every path: a product and a sum are fused where the source
  # says so and nowhere else. GCC 12 takes the undefined operands of its own AVX-512 intrinsics for
  # uninitialised variables.
  target_compile_options(
    bertrt_${folder} PRIVATE $<IF:$<BOOL:${BERTRT_SANITIZE}>,-O1,-O3> -ffp-contract=off -fno-exceptions -fno-rtti -Wno-uninitialized
                             -Wno-maybe-uninitialized ${ARGN})
  set_target_properties(bertrt_${folder} PROPERTIES POSITION_INDEPENDENT_CODE ON)
  target_link_libraries(${target} PRIVATE bertrt_${folder})
endfunction()
