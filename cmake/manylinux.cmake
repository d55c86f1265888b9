# BERTRT_MANYLINUX=ON: the modules need no symbol newer than manylinux_2_28 has, on whatever machine
# they are linked. In that tag's containers it is not needed.
find_package(Python REQUIRED COMPONENTS Interpreter)
set(stand_ins "${CMAKE_BINARY_DIR}/old_libraries")
execute_process(
  COMMAND "${Python_EXECUTABLE}" "${CMAKE_SOURCE_DIR}/cmake/old_libraries.py" "${CMAKE_CXX_COMPILER}"
          "${stand_ins}" COMMAND_ERROR_IS_FATAL ANY)
add_link_options("-L${stand_ins}")
link_libraries(-Wl,--push-state,--no-as-needed -lpthread -ldl -lrt -Wl,--pop-state)
